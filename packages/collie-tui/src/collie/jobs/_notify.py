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
_TEXT = 4096  # characters
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
        """Let the command know, as soon as it is its turn; of a text no more than a pipe can hold."""
        if self._command:
            short = {name: value[:_TEXT] if isinstance(value, str) else value for name, value in what.items()}
            self._waiting.append(to_json(short))
            self.look()

    def look(self) -> None:
        """Start the next command when the last one has ended; end one that takes too long. Called at each tick."""
        if self._running is not None:
            if _lives(self._running.pid):
                if time.monotonic() >= self._deadline:
                    self._end(self._running.pid)
                return
            self._running.returncode = 0  # collected, by us or by whoever collects all children
            self._running = None
        if self._waiting:
            self._start(self._waiting.popleft())

    def settle(self) -> None:
        """Wait until all is told: as long as a command that runs and one more may take. What runs then is ended."""
        deadline = time.monotonic() + 2 * _LIMIT
        while (self._running is not None or self._waiting) and time.monotonic() < deadline:
            time.sleep(0.02)
            self.look()
        self._waiting.clear()
        while self._running is not None:
            self._end(self._running.pid)
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

    def _end(self, group: int) -> None:
        """KILL a command, with what it has started and left in its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)

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
