"""A checkpoint's folder on a file system: written beside its place, moved into it in one step, found again.

Beside a folder `step-8` lie `.step-8.partial.<pid>.<host>` while it is written, and `.step-8.previous` for the moment
in which it takes the place of an older one of that name. Whoever looks for `step-8` in that moment finds the latter.
"""

import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from collie.controller.trainer._checkpoint._manifest import MANIFEST, Manifest, read_manifest
from collie.interfaces import CheckpointError
from collie.models.weights import sync

_PARTIAL, _PREVIOUS = "partial", "previous"


class Folder:
    """Where a checkpoint is to lie, on a disk that every rank sees.

    path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    def prepare(self) -> str:
        """Return the path of a new, empty folder to write into; for one process alone.

        Removes what killed processes left there.

        Raises:
            CheckpointError: at the path lies something that is no checkpoint.
            OSError: the file system refused.
        """
        if self.path.exists() and not (self.path / MANIFEST).is_file() and not _is_empty(self.path):
            raise CheckpointError(
                f"{self.path} exists and is no checkpoint, so it is not replaced. Give a path that is not in use."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        host = socket.gethostname()
        for left in self.path.parent.glob(f".{self.path.name}.{_PARTIAL}.*"):
            _, pid, owner = left.name.removeprefix(f".{self.path.name}.").split(".", 2)
            if owner == host and (int(pid) == os.getpid() or not _lives(int(pid))):
                shutil.rmtree(left, ignore_errors=True)
        stage = self.path.parent / f".{self.path.name}.{_PARTIAL}.{os.getpid()}.{host}"
        stage.mkdir()
        return str(stage)

    def local(self, stage: str) -> Path:
        """Return where this rank's files are to be written.

        Raises:
            CheckpointError: this rank does not see the folder.
        """
        if not Path(stage).is_dir():
            raise CheckpointError(
                f"this rank does not see {stage}, which rank 0 made. Give a path on a file system that all nodes share."
            )
        return Path(stage)

    def put(self, stage: str, names: Iterable[str]) -> None:
        """Hand over files of `local`: they are where they belong."""

    def commit(self, staged: str) -> None:
        """Let a folder that is complete take its place, and an older one of that name go after that.

        Raises:
            OSError: the file system refused.
        """
        stage = Path(staged)
        for path in (*stage.rglob("*"), stage):
            if path.suffix != ".safetensors":  # these are on the disk already
                sync(path)
        previous = _previous(self.path)
        if self.path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            self.path.rename(previous)
        stage.rename(self.path)
        sync(self.path.parent)
        shutil.rmtree(previous, ignore_errors=True)

    def discard(self, stage: str) -> None:
        """Remove what was written of a checkpoint that is not to be."""
        shutil.rmtree(stage, ignore_errors=True)

    def leave(self) -> None:
        """Clear away what this rank needed for writing: nothing."""

    def fetch(self) -> Path:
        """Return where the checkpoint lies: an interruption may have left an older one under another name."""
        previous = _previous(self.path)
        return previous if not self.path.exists() and (previous / MANIFEST).is_file() else self.path


def newest_first(folders: Iterable[Path]) -> list[tuple[Path, Manifest]]:
    """Return the checkpoints that lie directly in these folders, the last written one first.

    What has no manifest, or not all of its files, is passed over.
    """
    found: dict[Path, Manifest] = {}
    for folder in folders:
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            if not path.is_dir() or f".{_PARTIAL}." in path.name or not (path / MANIFEST).is_file():
                continue
            if path.name.endswith(f".{_PREVIOUS}") and Folder(folder / _original(path.name)).fetch() != path:
                continue
            try:
                found[path] = read_manifest(path)
            except CheckpointError:
                continue
    return sorted(found.items(), key=lambda item: (item[1].written, item[1].step), reverse=True)


def _previous(path: Path) -> Path:
    return path.parent / f".{path.name}.{_PREVIOUS}"


def _original(name: str) -> str:
    return name.removeprefix(".").removesuffix(f".{_PREVIOUS}")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
