"""How much memory of its own a piece of work takes, on Linux."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

_EVERY_S = 0.0005


class PeakMemory:
    """The most anonymous memory (RssAnon) that this process has while the context is open.

    `above` is, after the context, that peak less what there was before, in bytes. Pages of a mapped file are no part of
    it: they are the kernel's cache of the file, which it takes back when memory is short. glibc keeps no freed block
    of 64 KiB or more from here on, which otherwise would be used again unseen.
    """

    above = 0

    def __enter__(self) -> PeakMemory:
        glibc, mmap_threshold = ctypes.CDLL(None), -3
        glibc.mallopt(mmap_threshold, 64 * 1024)
        glibc.malloc_trim(0)
        self._before = self._most = _anonymous()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._watcher.join()
        self.above = self._most - self._before

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._most = max(self._most, _anonymous())


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024
