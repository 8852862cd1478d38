"""A checkpoint's folder on any file system that fsspec knows: s3://…, memory://…; in place when its manifest is.

Files are uploaded one by one, the manifest last. Into the folder itself where there is none, beside it where an older
checkpoint is to be replaced, so that one of them is whole at any moment.
"""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec

from collie.controller.trainer._checkpoint._manifest import MANIFEST, Manifest, parse_manifest
from collie.interfaces import CheckpointError, MissingExtraError

_PARTIAL = ".partial"  # a file in a folder that is being uploaded, and the end of the name of one beside it


def is_url(path: str | Path) -> bool:
    """Whether a path names a file system."""
    return "://" in str(path)


class RemoteFolder:
    """Where a checkpoint is to lie, on a file system that every rank reaches.

    path: its URL.

    Raises:
        MissingExtraError: what fsspec needs for such URLs is not installed.
    """

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")
        self._system, self._root = file_system(self.path)
        parent, _, name = self._root.rpartition("/")
        self._beside = f"{parent}/.{name}{_PARTIAL}"
        self._local: Path | None = None

    def prepare(self) -> str:
        """Return where to upload to; for one process alone. Removes what killed processes left there.

        Raises:
            CheckpointError: at the URL lies something that is no checkpoint.
            OSError: the file system refused.
        """
        system = self._system
        system.invalidate_cache()
        if system.exists(f"{self._root}/{_PARTIAL}"):
            system.rm(self._root, recursive=True)
        whole = system.exists(f"{self._root}/{MANIFEST}")
        if not whole and system.exists(self._root) and system.ls(self._root):
            raise CheckpointError(
                f"{self.path} exists and is no checkpoint, so it is not replaced. Give a URL that is not in use."
            )
        stage = self._root
        if whole:
            stage = self._beside
            if system.exists(stage):
                system.rm(stage, recursive=True)
        system.makedirs(stage, exist_ok=True)
        system.pipe_file(f"{stage}/{_PARTIAL}", b"")
        return stage

    def local(self, stage: str) -> Path:
        """Return a folder of this rank's, whose files `put` uploads."""
        if self._local is None:
            self._local = Path(tempfile.mkdtemp(prefix="collie-checkpoint-"))
        return self._local

    def put(self, stage: str, names: Iterable[str]) -> None:
        """Upload files of `local`, and let go of them there."""
        local = self.local(stage)
        for name in names:
            parent = f"{stage}/{name}".rpartition("/")[0]
            self._system.makedirs(parent, exist_ok=True)
            self._system.put_file(str(local / name), f"{stage}/{name}")
            (local / name).unlink()

    def commit(self, staged: str) -> None:
        """Upload what is in `local`, the manifest last; then let the checkpoint take its place."""
        local = self.local(staged)
        names = [path.relative_to(local).as_posix() for path in sorted(local.rglob("*")) if path.is_file()]
        self.put(staged, [name for name in names if name != MANIFEST])
        self.put(staged, [MANIFEST])
        self._system.rm_file(f"{staged}/{_PARTIAL}")
        if staged != self._root:
            self._replace(staged)
        self.leave()

    def discard(self, stage: str) -> None:
        """Remove what was uploaded of a checkpoint that is not to be."""
        self.leave()
        if self._system.exists(f"{stage}/{_PARTIAL}"):
            self._system.rm(stage, recursive=True)

    def leave(self) -> None:
        """Clear away what this rank needed for writing."""
        if self._local is not None:
            shutil.rmtree(self._local, ignore_errors=True)
            self._local = None

    def fetch(self) -> Path:
        """Download the checkpoint to a new folder, and return that; the caller removes it.

        Raises:
            CheckpointError: there is none.
        """
        self._system.invalidate_cache()
        root = next((root for root in (self._root, self._beside) if _is_whole(self._system, root)), None)
        if root is None:
            raise CheckpointError(
                f"{self.path} is no checkpoint to resume from: it has no {MANIFEST}, or was not written to its end. "
                f"Give a URL that save_checkpoint wrote to."
            )
        local = Path(tempfile.mkdtemp(prefix="collie-checkpoint-"))
        self._system.get(f"{root}/", str(local), recursive=True)
        return local

    def _replace(self, stage: str) -> None:
        """Copy a whole checkpoint over the older one; until that is done, the first is found in its stead."""
        system = self._system
        system.rm(self._root, recursive=True)
        system.makedirs(self._root, exist_ok=True)
        system.pipe_file(f"{self._root}/{_PARTIAL}", b"")
        for source in sorted(system.find(stage), key=lambda path: path.endswith(f"/{MANIFEST}")):
            target = self._root + source.removeprefix(stage)
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.cp_file(source, target)
        system.rm_file(f"{self._root}/{_PARTIAL}")
        system.rm(stage, recursive=True)


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
        MissingExtraError: what fsspec needs for such URLs is not installed.
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        extra = "pip install 'collie-train[s3]'" if url.startswith("s3:") else str(error)
        raise MissingExtraError(f"{url}: this kind of URL needs another package: {extra}") from error
    return system, path.rstrip("/")


def newest_remote(url: str) -> list[tuple[str, Manifest]]:
    """Return the checkpoints that lie directly below a URL, the last written one first."""
    system, root = file_system(url)
    system.invalidate_cache()
    if not system.exists(root):
        return []
    found = {}
    for path in system.ls(root, detail=False):
        path = path.rstrip("/")
        if not _is_whole(system, path):
            continue
        name = path.rpartition("/")[2]
        if name.endswith(_PARTIAL):
            name = name.removeprefix(".").removesuffix(_PARTIAL)
        try:
            found[f"{url.rstrip('/')}/{name}"] = parse_manifest(system.cat_file(f"{path}/{MANIFEST}"), path)
        except CheckpointError:
            continue
    return sorted(found.items(), key=lambda item: (item[1].written, item[1].step), reverse=True)


def _is_whole(system: Any, root: str) -> bool:
    return bool(system.exists(f"{root}/{MANIFEST}") and not system.exists(f"{root}/{_PARTIAL}"))
