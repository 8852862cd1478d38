"""A folder on any file system that fsspec knows: s3://…, memory://…; whole at any moment, or not there.

Files are uploaded one by one, LAST, which says what they are, at the end; while they are, the folder holds
`LAST.partial`. They go into the folder itself where there is nothing whole yet. What replaces something goes beside it,
into `.NAME.LAST.partial/`, and is copied over when it is complete: until that is done, a reader finds the one beside.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from collie.interfaces import CheckpointError, MissingExtraError
from collie.parallel import Topology, once_per_node, together

_PARTIAL = ".partial"  # ends the names of a file in a folder that is being uploaded, and of a folder beside it
_SCRATCH = "collie-checkpoint-"  # begins the names of local folders


def is_url(path: object) -> bool:
    """Whether a path names a file system."""
    return "://" in str(path)


class RemoteFolder:
    """See `Target`: a folder on a file system that every rank reaches.

    Args:
        path: its URL.
        last: the file without which there is nothing; it is uploaded after all others.
        owns: whether a file of the folder, by its name in it, goes when what is there is replaced. Others stay.

    Raises:
        MissingExtraError: what fsspec needs for such URLs is not installed.
    """

    def __init__(self, path: str, last: str, owns: Callable[[str], bool]) -> None:
        self.path = path.rstrip("/")
        self._system, self._root = file_system(self.path)
        self._last, self._owns = last, owns
        self._mark = f"{last}{_PARTIAL}"
        parent, _, name = self._root.rpartition("/")
        self._beside = f"{parent}/.{name}.{self._mark}"
        self._local: Path | None = None

    def prepare(self) -> str:
        """Return where to upload to; for one process alone. Ends, or removes, what killed processes have left there."""
        system = self._system
        system.invalidate_cache()
        if self._exists(self._root, self._mark) and self._is_whole(self._beside):
            self._replace(self._beside)
        if system.exists(self._beside):
            system.rm(self._beside, recursive=True)
        stage = self._beside if self._is_whole(self._root) else self._root
        if stage == self._root:
            self._remove_owned()
        system.makedirs(stage, exist_ok=True)
        system.pipe_file(f"{stage}/{self._mark}", b"")
        return stage

    def local(self, stage: str) -> Path:
        """Return a folder of this rank's, whose files `put` uploads."""
        if self._local is None:
            self._local = Path(tempfile.mkdtemp(prefix=_SCRATCH))
        return self._local

    def put(self, stage: str, names: Iterable[str]) -> None:
        """Upload files of `local`, and let go of them there."""
        local = self.local(stage)
        for name in names:
            parent = f"{stage}/{name}".rpartition("/")[0]
            self._system.makedirs(parent, exist_ok=True)
            self._system.put_file(str(local / name), f"{stage}/{name}")
            (local / name).unlink()

    def commit(self, stage: str) -> None:
        """Upload what is in `local`, the last file last; then let the folder take its place."""
        local = self.local(stage)
        names = [path.relative_to(local).as_posix() for path in sorted(local.rglob("*")) if path.is_file()]
        self.put(stage, sorted(names, key=lambda name: name == self._last))
        self._system.rm_file(f"{stage}/{self._mark}")
        if stage != self._root:
            self._replace(stage)
        self.leave()

    def discard(self, stage: str) -> None:
        """Remove what was uploaded of a folder that is not to be."""
        self.leave()
        if not self._exists(stage, self._mark):
            return
        if stage == self._root:
            self._remove_owned()
            self._system.rm_file(f"{stage}/{self._mark}")
        if stage != self._root or not self._system.find(stage):
            self._system.rm(stage, recursive=True)

    def leave(self) -> None:
        """Clear away what this rank needed for writing."""
        if self._local is not None:
            shutil.rmtree(self._local, ignore_errors=True)
            self._local = None

    def fetch(self, only: Callable[[str], bool] = lambda name: True) -> Path:
        """Download the folder to a new one, and return that; the caller removes it.

        Args:
            only: which files, by their names in the folder.

        Raises:
            CheckpointError: there is none that is whole, or a file came in part.
        """
        self._system.invalidate_cache()
        root = self._found()
        if root is None:
            raise CheckpointError(
                f"{self.path} is not there to be read: it has no {self._last}, or was not written to its end. "
                f"Give a URL that was saved to."
            )
        local = Path(tempfile.mkdtemp(prefix=_SCRATCH))
        try:
            for name, size in self._files(root).items():
                if only(name):
                    (local / name).parent.mkdir(parents=True, exist_ok=True)
                    self._system.get_file(f"{root}/{name}", str(local / name))
                    _check_size(f"{self.path}/{name}", local / name, size)
        except BaseException:
            shutil.rmtree(local, ignore_errors=True)
            raise
        return local

    def read_last(self) -> bytes | None:
        """Return the contents of the last file; None where there is no folder that is whole."""
        root = self._found()
        return bytes(self._system.cat_file(f"{root}/{self._last}")) if root is not None else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing lies there, nor was being written."""
        return not self._system.exists(self._root) or not self._system.find(self._root)

    @property
    def was_saved(self) -> bool:
        """Whether what lies there was saved to its end, or was being saved."""
        return self._exists(self._root, self._last) or self._exists(self._root, self._mark)

    @property
    def bytes(self) -> int:
        """What all its files have together."""
        return sum(self._files(self._root).values())

    def _found(self) -> str | None:
        """Where a whole folder lies, if one does: in its place, or beside it."""
        return next((root for root in (self._root, self._beside) if self._is_whole(root)), None)

    def _exists(self, root: str, name: str) -> bool:
        return bool(self._system.exists(f"{root}/{name}"))

    def _is_whole(self, root: str) -> bool:
        return self._exists(root, self._last) and not self._exists(root, self._mark)

    def _files(self, root: str) -> dict[str, int]:
        """The sizes of the files in a folder, by their names in it."""
        found = self._system.find(root, detail=True)
        sizes = {path.removeprefix(root).lstrip("/"): int(about["size"]) for path, about in found.items()}
        return {name: size for name, size in sizes.items() if name != self._mark}

    def _replace(self, stage: str) -> None:
        """Copy a whole folder over the older one; until that is done, the first is found in its stead."""
        system, names = self._system, self._files(stage)
        system.makedirs(self._root, exist_ok=True)
        system.pipe_file(f"{self._root}/{self._mark}", b"")
        if self._exists(self._root, self._last):
            system.rm_file(f"{self._root}/{self._last}")  # for readers that know nothing of the mark
        self._remove_owned()  # before others come: nobody is to read some of both
        for name in sorted(names, key=lambda name: name == self._last):
            target = f"{self._root}/{name}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.cp_file(f"{stage}/{name}", target)
        system.rm_file(f"{self._root}/{self._mark}")
        system.rm(stage, recursive=True)

    def _remove_owned(self) -> None:
        for name in self._files(self._root) if self._system.exists(self._root) else ():
            if self._owns(name):
                self._system.rm_file(f"{self._root}/{name}")


def whole_folders(url: str, last: str) -> Iterator[tuple[str, bytes]]:
    """Yield the URLs of the whole folders that lie directly below one, each with the contents of its `last` file."""
    system, root = file_system(url)
    system.invalidate_cache()
    listed = system.ls(root, detail=False) if system.exists(root) else []
    names = {path.rstrip("/").rpartition("/")[2] for path in listed}
    beside = {name for name in names if name.startswith(".") and name.endswith(f".{last}{_PARTIAL}")}
    for name in sorted((names - beside) | {name[1:].removesuffix(f".{last}{_PARTIAL}") for name in beside}):
        folder = RemoteFolder(f"{url.rstrip('/')}/{name}", last, lambda name: False)
        if (content := folder.read_last()) is not None:
            yield folder.path, content


@contextmanager
def fetched(
    folder: RemoteFolder, topology: Topology, only: Callable[[str], bool] = lambda name: True
) -> Iterator[Path]:
    """Within it the folder's files are on this node, downloaded by one of its ranks. Collective.

    only: which files, by their names in the folder.

    Raises:
        CheckpointError: there is none that is whole, or it could not be fetched; on every rank.
    """

    def fetch() -> Path:
        local = Path(once_per_node(f"fetching {folder.path}", lambda: str(folder.fetch(only))))
        return local if local.is_dir() else folder.fetch(only)  # nodes that share a host's name need not share its disk

    local = together(topology, f"{folder.path} could not be fetched", fetch)[topology.rank]
    try:
        yield local
    except BaseException:  # a rank that fails must not wait for others
        shutil.rmtree(local, ignore_errors=True)
        raise
    topology.barrier()
    shutil.rmtree(local, ignore_errors=True)


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
        MissingExtraError: what fsspec needs for such URLs is not installed.
    """
    import fsspec  # which not every run needs

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        extra = "pip install 'collie-models[s3]'" if url.startswith("s3:") else str(error)
        raise MissingExtraError(f"{url}: this kind of URL needs another package: {extra}") from error
    return system, path.rstrip("/")


def _check_size(name: str, file: Path, size: int) -> None:
    if file.stat().st_size != size:
        raise CheckpointError(
            f"{name} has {size} bytes, and {file.stat().st_size} of them came: the transfer broke off. Try again."
        )
