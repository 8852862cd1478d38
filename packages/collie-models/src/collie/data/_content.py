"""What rows contain, as a short digest: the same digest means the same rows."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from collie.data._cache import cache_folder

_LARGE = 64 * 2**20  # bytes; less is read in some 40 ms
_REST_NS = 2_000_000_000
_ROWS_AT_ONCE = 1000


def content_of(data: Any) -> str | None:
    """A digest of what `data` contains; None where that cannot be told, so that nothing is cached.

    A path is known by its file's bytes (SHA-256, which processors have instructions for; of a large file it is
    remembered while neither the file's size nor its times of change do), a dataset of `datasets` by its own
    fingerprint, a list or tuple by its rows where they are made of Python's plain types: strings, numbers, lists,
    dicts. Arrays, tensors and a stream have no digest.

    Raises OSError: the file cannot be read.
    """
    if isinstance(data, str | Path):
        path = Path(data)
        return _digest_of_file(path) if path.is_file() else None
    if isinstance(data, list | tuple):
        return _digest_of_rows(data)
    fingerprint = getattr(data, "_fingerprint", None)
    return f"datasets:{fingerprint}" if isinstance(fingerprint, str) else None


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        before = _state(file)
        known = _Remembered(path) if before[2] >= _LARGE else None
        if known is not None and (digest := known.digest(before)) is not None:
            return digest
        digest = f"file:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        # a change within the clock tick of another cannot be told from it: only what has rested is remembered
        if known is not None and _state(file) == before and time.time_ns() - before[4] > _REST_NS:
            known.keep(before, digest)
    return digest


def _state(file: BinaryIO) -> list[int]:
    """What changes whenever a file does: nothing that a program can do sets st_ctime back."""
    stat = os.fstat(file.fileno())
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


class _Remembered:
    """The digest of a large file, kept in the cache for as long as the file stays as it is."""

    def __init__(self, path: Path) -> None:
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        self._path = cache_folder() / "files" / f"{name}.json"

    def digest(self, state: Sequence[int]) -> str | None:
        try:
            kept = json.loads(self._path.read_text())
            return str(kept["digest"]) if kept["state"] == state else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, state: Sequence[int], digest: str) -> None:
        unfinished = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # a cache that cannot be written to
            cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.parent.mkdir(exist_ok=True)
            unfinished.write_text(json.dumps({"state": state, "digest": digest}))
            unfinished.replace(self._path)


def _digest_of_rows(rows: Sequence[Any]) -> str | None:
    sink = _HashSink()
    try:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            pickler = _PlainPickler(sink, protocol=4)
            # without references to what came before, which depend on the objects' identities and not on what they hold
            pickler.fast = True
            pickler.dump(rows[start : start + _ROWS_AT_ONCE])
    except (_NotPlain, ValueError, RecursionError):  # ValueError: a list that holds itself
        return None
    return f"rows:{sink.hash.hexdigest()}"


class _HashSink:
    """A file whose bytes go into a hash."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


class _NotPlain(Exception):
    pass


class _PlainPickler(pickle.Pickler):
    """Pickles Python's plain types, which it knows by itself, and nothing else: of those the bytes are the content."""

    def reducer_override(self, value: Any) -> NoReturn:
        raise _NotPlain(type(value).__name__)
