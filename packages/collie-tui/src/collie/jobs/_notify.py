"""A command of the user's that is told how a job fares: as JSON on its standard input, without holding anything up."""

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from collie.jobs._json import to_json

_LIMIT = 30.0  # seconds that the command has
_WAITING = 100  # what is told while it still runs waits; beyond these the oldest are dropped


class Notifier:
    """Runs `command` by the shell, one at a time, once for everything that there is to tell.

    command: "" means that nobody wants to know.
    log: where its output goes.
    """

    def __init__(self, command: str, log: Path) -> None:
        self._command, self._log = command, log
        self._waiting: deque[str] = deque(maxlen=_WAITING)
        self._running: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0

    def tell(self, **what: Any) -> None:
        """Let the command know, as soon as it is its turn."""
        if self._command:
            self._waiting.append(to_json(what))
            self.look()

    def look(self) -> None:
        """Start the next command when the last one has ended; end one that takes too long. Called at each tick."""
        if self._running is not None:
            if _lives(self._running.pid):
                if time.monotonic() >= self._deadline:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(self._running.pid, signal.SIGKILL)
                return
            self._running.returncode = 0  # collected, by us or by whoever collects all children
            self._running = None
        if self._waiting:
            self._start(self._waiting.popleft())

    def settle(self) -> None:
        """Wait until all is told, as long as a command may take."""
        deadline = time.monotonic() + _LIMIT
        while (self._running is not None or self._waiting) and time.monotonic() < deadline:
            time.sleep(0.02)
            self.look()

    def own(self, pids: Iterable[int]) -> set[int]:
        """Those of these processes that belong to the command, not to the job."""
        if self._running is None:
            return set()
        mine = set()
        for pid in pids:
            with contextlib.suppress(OSError):
                if os.getsid(pid) == self._running.pid:
                    mine.add(pid)
        return mine

    def _start(self, text: str) -> None:
        with contextlib.suppress(OSError), self._log.open("ab") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", self._command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running, self._deadline = process, time.monotonic() + _LIMIT
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # less than a pipe holds: it never waits
                pipe.write(text.encode() + b"\n")


def _lives(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
