"""Where a folder of files is to lie that one or several ranks write: complete, or as it was before."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Target(Protocol):
    """A folder on a disk that all ranks see, or on another file system (`RemoteFolder`).

    One process (rank 0) prepares a place to write to, the stage. Each rank that writes does so in its `local` folder,
    and hands files over by `put`. At the end the one commits the stage, or discards it.
    """

    @property
    def path(self) -> Path | str:
        """Of the folder: a path or a URL."""
        ...

    def prepare(self) -> str:
        """Return a new stage."""
        ...

    def local(self, stage: str) -> Path:
        """Return the folder in which this rank writes."""
        ...

    def put(self, stage: str, names: Iterable[str]) -> None:
        """Hand over files of `local`, by their names in it."""
        ...

    def commit(self, stage: str) -> None:
        """Hand over what is left in `local`, and let the stage take its place."""
        ...

    def discard(self, stage: str) -> None:
        """Remove a stage that is not to be; nothing, where it was committed."""
        ...

    def leave(self) -> None:
        """Clear away what this rank needed for writing."""
        ...

    def fetch(self) -> Path:
        """Return a folder in which the files can be read."""
        ...


@contextmanager
def writing(target: Target) -> Iterator[Path]:
    """Within it one process writes to the folder that comes; what lies there at its end takes its place.

    Where it ends in an error, what was there before is as it was.
    """
    stage = target.prepare()
    try:
        yield target.local(stage)
        target.commit(stage)
    except BaseException:
        target.discard(stage)
        raise
    finally:
        target.leave()
