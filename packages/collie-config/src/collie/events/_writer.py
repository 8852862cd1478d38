"""Writes one rank's events off the training thread: never blocks or ends it, and counts what was dropped."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from collie.events._kinds import Alert, Event
from collie.events._record import VERSION, Record, encode

_log = logging.getLogger("collie.events")

# What a full queue gives up first: samples of a rank, then its steps. Everything else (hello, bye, eval, checkpoint, …)
# is rare and goes last.
_PRIORITY = {"metric": 0, "sample": 0, "log": 0, "step": 1}
_RARE = 2
_PAUSE = 0.05  # seconds between two writes to the file: many events, one system call


class NullWriter:
    """An event sink that keeps nothing: what runs without a run folder writes to it."""

    dropped = 0

    def write(self, event: Event, *, step: int | None = None) -> None:
        """Forget the event."""

    def close(self, timeout: float = 5.0) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class EventWriter:
    """Appends one rank's events to `folder`/rank-00000.a0.jsonl, through a queue of `capacity` events.

    `write` may be called from any thread. A daemon thread, started by the first write, empties the queue. Where the
    disk is slower than the run and the queue is full, metric, sample and log events give way to step events, and both
    to the rest; `dropped` counts them, and an alert "events_dropped" says so in the file once there is room.
    A process forked from the writing one keeps a silent copy: a file has one writer.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int, attempt: int = 0, *, capacity: int = 4096) -> None:
        self.path = Path(folder) / f"rank-{rank:05d}.a{attempt}.jsonl"
        self.rank = rank
        self.attempt = attempt
        self.dropped = 0
        self._capacity = max(1, capacity)
        self._queues: tuple[deque[tuple[int, str]], ...] = (deque(), deque(), deque())  # (seq, line) by priority
        self._seq = itertools.count()
        self._told = 0
        self._lock = threading.RLock()  # a signal handler may write while its thread is writing
        self._filled = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self._warned = False

    def write(self, event: Event, *, step: int | None = None) -> None:
        """Queue one event of the global step `step`; drop it, or one that matters less, where the queue is full."""
        if self._pid is not None and self._pid != os.getpid():
            return
        try:
            with self._lock:
                self._accept(event, step)
                if self._thread is None and not self._closing.is_set():
                    self._start()
            if not self._filled.is_set():  # asking is cheaper; it is cleared with the lock held, when all is taken
                self._filled.set()
        except Exception as error:  # telemetry must not end a training run
            self._lose(1, error)

    def close(self, timeout: float = 5.0) -> None:
        """Write what is queued and end the thread; give up after `timeout` seconds. Later events are dropped."""
        if self._pid is not None and self._pid != os.getpid():
            return
        with self._lock:
            self._closing.set()
            thread = self._thread
        self._filled.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            if not thread.is_alive():
                atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self._pid = os.getpid()
        thread = threading.Thread(target=self._run, name=f"collie-events-{self.rank}", daemon=True)
        thread.start()
        self._thread = thread
        atexit.register(self.close)  # a script that ends without closing keeps its last events

    def _accept(self, event: Event, step: int | None) -> None:
        """Encode one event and queue it; called with the lock held."""
        if self._closing.is_set():
            self.dropped += 1
            return
        seq = next(self._seq)
        line = self._encode(seq, event, step)  # now, so that a later change of a dict in it changes nothing here
        priority = _PRIORITY.get(event.kind, _RARE)
        if sum(map(len, self._queues)) >= self._capacity:
            self.dropped += 1
            victim = next((level for level in range(priority + 1) if self._queues[level]), None)
            if victim is None or (victim == priority == _RARE):
                return  # nothing in the queue matters less
            self._queues[victim].popleft()
        self._queues[priority].append((seq, line))

    def _encode(self, seq: int, event: Event, step: int | None) -> str:
        return encode(Record(VERSION, seq, time.time(), self.rank, self.attempt, step, event))

    def _take(self) -> list[str]:
        """Empty the queue into a list, in order; add an alert where events were dropped since the last."""
        with self._lock:
            batch = [line for _, line in sorted(itertools.chain(*self._queues))]
            for queue in self._queues:
                queue.clear()
            if not self._closing.is_set():  # closed since the thread looked: let it come again, for the last time
                self._filled.clear()
            if lost := self.dropped - self._told:
                self._told = self.dropped
                message = f"{lost} events were dropped: they came faster than {self.path.parent} took them."
                batch.append(self._encode(next(self._seq), Alert("warning", "events_dropped", message), None))
            return batch

    def _run(self) -> None:
        """Move events from the queue to the file until closed and empty."""
        try:
            file = open_private(self.path)
        except OSError as error:
            self._fail(error)
            return
        try:
            torn = _ends_in_a_line(self.path) is False
            while True:
                self._filled.wait()
                closing = self._closing.is_set()  # nothing is accepted after it, so that batch is the last
                if batch := self._take():
                    torn = self._append(file, batch, torn)
                if closing:
                    return
                self._closing.wait(_PAUSE)
        finally:
            os.close(file)

    def _append(self, file: int, batch: list[str], torn: bool) -> bool:
        """Write whole lines; return whether the last one was cut off, which the next call mends with a newline."""
        data = ("\n" * torn + "\n".join(batch) + "\n").encode("utf-8", "replace")
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(file, view) :]
        except OSError as error:
            written = len(data) - len(view)
            self._lose(len(batch) - data[torn:written].count(b"\n"), error)
            return written > 0 or torn
        return False

    def _fail(self, error: OSError) -> None:
        """Give up: the file cannot be opened at all."""
        with self._lock:
            self._closing.set()
            lost = sum(map(len, self._queues))
            for queue in self._queues:
                queue.clear()
        self._lose(lost, error)

    def _lose(self, count: int, error: Exception) -> None:
        with self._lock:
            self.dropped += count
        if not self._warned:
            self._warned = True
            _log.warning("Events of rank %d are not being written to %s: %s", self.rank, self.path, error)


def open_private(path: Path) -> int:
    """Open `path` for appending, readable by its user, and by the group if its folder is; return the descriptor."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, file_mode(path.parent))
    return descriptor


def file_mode(folder: Path) -> int:
    """Return the mode of a file in `folder`: 0640 where the folder is group-readable, 0600 otherwise."""
    return 0o640 if folder.stat().st_mode & 0o040 else 0o600


def _ends_in_a_line(path: Path) -> bool:
    """Return whether the file is empty or its last line is whole; a killed writer may have left half of one."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
