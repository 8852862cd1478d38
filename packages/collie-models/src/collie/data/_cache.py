"""Tables on disk by what they were made from: made once, by one process of those that ask, and then mapped."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from collie.data._table import FILE_NAME, FORMAT, TokenTable
from collie.interfaces import DataError

logger = logging.getLogger(__name__)


class NotCached(Exception):
    """A table cannot be kept in the cache, for the reason that it says; without a cache it can be made."""


def cache_folder() -> Path:
    """Where tables are kept: `$COLLIE_CACHE/datasets`, else `~/.cache/collie/datasets`. It may be deleted."""
    root = os.environ.get("COLLIE_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "collie") / "datasets"


def digest_of(content: str, fingerprint: str) -> str:
    """The name of a table by its rows' content and its encoder's fingerprint; this format's alone."""
    return hashlib.sha256(json.dumps([FORMAT, content, fingerprint]).encode()).hexdigest()[:32]


def cached(digest: str, make: Callable[[Path], TokenTable]) -> tuple[TokenTable, bool]:
    """The table of that digest, mapped, and whether it was made now.

    Of several processes that ask for one at a time, one calls `make` with an empty folder for what it needs on the
    way; the others wait, map what it made, and, where it failed or died, try in turn. They need not know of each other:
    a file lock keeps them apart, which the kernel opens when its process ends. An entry that is damaged is made anew.

    Raises NotCached: the folder cannot be written to. And what `make` raises.
    """
    root = cache_folder()
    table = _mapped(root / digest)
    if table is not None:
        return table, False
    with _not_cached(), _locked(root, digest) as alone:
        table = _mapped(root / digest, warn=True)  # made while this process waited
        if table is not None:
            return table, False
        if alone:
            for left in root.glob(f".{digest}.*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        _make(root, digest, make)
        return TokenTable.load(root / digest, mapped=True), True


def _mapped(folder: Path, *, warn: bool = False) -> TokenTable | None:
    if not (folder / FILE_NAME).is_file():
        return None
    try:
        table = TokenTable.load(folder, mapped=True)
    except DataError as error:
        if warn:
            logger.warning("A cached dataset is damaged and is made anew: %s", error)
        return None
    with suppress(OSError):  # a cache that cannot be written to can be read
        os.utime(folder)  # when it was last used, for those who delete by age
    logger.info("Tokens are mapped from %s.", folder)
    return table


def _make(root: Path, digest: str, make: Callable[[Path], TokenTable]) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=root))  # private to the user
    try:
        work = unfinished / "work"
        work.mkdir()
        make(work).save(unfinished)
        shutil.rmtree(work)
        _move(unfinished, root / digest)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _move(unfinished: Path, folder: Path) -> None:
    """Put an entry in its place, instead of a damaged one that may be there; who has mapped that keeps it.

    A sound one, which another process made where there are no locks, stays.
    """
    while _mapped(folder) is None:
        try:
            unfinished.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        with tempfile.TemporaryDirectory(prefix=f"{unfinished.name}.", dir=folder.parent) as aside:
            folder.rename(Path(aside) / "damaged")


@contextmanager
def _locked(root: Path, digest: str) -> Iterator[bool]:
    """Hold the lock of one table; False where the file system has none, so that nobody is kept away."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = root / f"{digest}.lock"
    while True:
        with path.open("w") as file:
            alone = _lock(file)
            if not _is_at(path, file):  # the one before removed it: there may be a new one
                continue
            try:
                yield alone
            finally:
                path.unlink(missing_ok=True)
            return


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("Another process tokenises the same rows: this one waits for it.")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        logger.warning("%s has no file locks (%s): each process tokenises by itself.", file.name, error)
        return False
    return True


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def _not_cached() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotCached(str(error)) from error
