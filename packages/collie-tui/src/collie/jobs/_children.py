"""The processes of a job, as its supervisor holds them: torchrun that it started, or processes that it found alive."""

import contextlib
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from collie.jobs._process import Identity, descendants, reap, signal_groups

_WALK_EVERY = 1.0  # seconds between two looks for processes that are new


class Children(Protocol):
    """What a supervisor may ask about and do to the processes of its job."""

    exit_code: int | None
    """torchrun's, when it has ended and was ours to wait for."""

    @property
    def torchrun(self) -> Identity | None:
        """torchrun, None where it is not known."""

    def ended(self) -> bool:
        """Whether torchrun has ended; where it was never ours, all processes. To be asked at each tick."""

    def left(self) -> list[int]:
        """Pids of all living processes, parents before children."""

    def terminate(self) -> None:
        """Send TERM to torchrun, which passes it on to its workers, or to them if it is gone."""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all living processes of the job; to be repeated, since more may have been made."""


class Started:
    """torchrun, started here, with all that it starts: the supervisor is the parent of its orphans.

    Raises:
        OSError, ValueError, IndexError: it cannot be started.
    """

    def __init__(self, argv: Sequence[str], cwd: str | None, log: Path, mode: int) -> None:
        self.exit_code: int | None = None
        with log.open("ab") as output:
            os.chmod(output.fileno(), mode)
            self._process = subprocess.Popen(
                argv,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._identity = _identity(self._process.pid)

    @property
    def torchrun(self) -> Identity | None:
        return self._identity

    def ended(self) -> bool:
        code = reap().get(self._process.pid)
        if code is not None:
            self.exit_code = self._process.returncode = code
        return self.exit_code is not None

    def left(self) -> list[int]:
        return descendants()

    def terminate(self) -> None:
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
        else:
            self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        signal_groups(reversed(self.left()), number)


class Found:
    """Processes that another supervisor, or nobody, started: known by identity, and by whose children they are.

    torchrun: None where it is not known.
    workers: the ranks that are alive here.
    """

    exit_code: int | None = None  # only a parent is told

    def __init__(self, torchrun: Identity | None, workers: Iterable[Identity]) -> None:
        self.torchrun = torchrun
        self._known = {one.pid: one for one in ([torchrun] if torchrun is not None else []) + list(workers)}
        self._next_walk = 0.0

    def ended(self) -> bool:
        return not self.left()

    def left(self) -> list[int]:
        """Also of orphans: each process below one that lives is remembered before its parent can be gone."""
        self._known = {pid: one for pid, one in self._known.items() if one.is_alive()}
        if time.monotonic() >= self._next_walk:
            self._next_walk = time.monotonic() + _WALK_EVERY
            self._take_in_children()
        return list(self._known)

    def _take_in_children(self) -> None:
        """One walk through the processes of the host, however many ranks there are."""
        below: defaultdict[int, list[int]] = defaultdict(list)
        for process in psutil.process_iter(["ppid"]):
            below[process.info["ppid"]].append(process.pid)
        waiting = list(self._known)
        while waiting:
            for child in below[waiting.pop()]:
                if child not in self._known and (identity := _identity(child)) is not None:
                    self._known[child] = identity
                    waiting.append(child)

    def terminate(self) -> None:
        if self.torchrun is not None and self.torchrun.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.torchrun.pid, signal.SIGTERM)
        else:
            self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """To groups that a process of the job leads, and else to the process alone: a script that started torchrun is
        in one group with it."""
        left = self.left()
        for pid in reversed(left):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(pid) == pid:
                    os.killpg(pid, number)
                elif os.getpgid(pid) not in left:
                    os.kill(pid, number)


def _identity(pid: int) -> Identity | None:
    try:
        return Identity.of(pid)
    except (psutil.Error, OSError):
        return None
