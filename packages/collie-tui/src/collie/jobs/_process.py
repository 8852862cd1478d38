"""Processes as a supervisor sees them: who is who, who is alive, and how to end a whole family."""

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for good: a pid alone is reused, so it counts only with its start time, boot and host.

    Attributes:
        pid: process id on `host`.
        start_time: seconds between the boot and the making of the process (/proc), which a clock that is set
            cannot move; seconds since the epoch where there is no /proc.
        boot_id: the kernel's random id of this boot.
        host: host name.
    """

    pid: int
    start_time: float
    boot_id: str
    host: str

    @classmethod
    def of(cls, pid: int | None = None) -> "Identity":
        """The identity of `pid`, of this process by default."""
        pid = os.getpid() if pid is None else pid
        return cls(pid, _start_times(pid)[0], boot_id(), socket.gethostname())

    @classmethod
    def from_dict(cls, values: Any) -> "Identity | None":
        """Read back what `as_dict` wrote; None when a field is missing or of another kind."""
        try:
            pid, start_time = int(values["pid"]), float(values["start_time"])
            boot, host = str(values["boot_id"]), str(values["host"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return cls(pid, start_time, boot, host) if pid > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """The form kept in job.json."""
        return asdict(self)

    def is_local(self) -> bool:
        """Whether this host can tell if the process lives."""
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Whether this very process still runs on this host; a zombie has ended and does not."""
        if not self.is_local() or self.boot_id != boot_id():
            return False
        return same_process_alive(self.pid, self.start_time)


def same_process_alive(pid: int, start_time: float) -> bool:
    """Whether `pid` runs here and was made at `start_time`, counted from the boot or from the epoch."""
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        return any(abs(mine - start_time) < 1.0 for mine in _start_times(pid))
    except (psutil.Error, OSError, ValueError, OverflowError):  # no process has a pid such as -1
        return False


def _start_times(pid: int) -> tuple[float, ...]:
    """When `pid` was made: seconds from the boot (where there is a /proc), then seconds from the epoch."""
    since_epoch = psutil.Process(pid).create_time()
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return (since_epoch,)
    after_name = stat.read_text().rpartition(")")[2].split()  # the name may hold spaces and brackets
    return (int(after_name[19]) / os.sysconf("SC_CLK_TCK"), since_epoch)


def boot_id() -> str:
    """The kernel's id of this boot, or the time of the boot where there is none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"boot-{psutil.boot_time():.0f}"


def become_subreaper() -> bool:
    """Make this process the parent of its orphaned descendants (Linux); False where the kernel has no such thing."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def reap() -> dict[int, int]:
    """Collect every child that has ended, adopted ones too: pid → exit code, or minus the signal."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def descendants() -> list[int]:
    """Pids of the living processes below this one, parents before children."""
    living = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process.pid)
    return living


def signal_groups(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal once to each process group that `pids` belong to, never to our own group.

    Each torchrun worker has a session of its own, so a group is a worker with everything it started in it.
    """
    own = os.getpgrp()
    groups = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    for group in sorted(groups - {own}):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def end_session(session: int, seconds: float = 10.0) -> bool:
    """KILL every process of a session with all that it has started, in sessions of their own too, and wait for it.

    Returns whether all of them have ended within `seconds`.
    """
    members = [process for process in psutil.process_iter() if _session_of(process.pid) == session]
    for process in members:
        with contextlib.suppress(psutil.Error):
            process.suspend()  # it starts nothing more, and stays the parent of what it has started
    deadline = time.monotonic() + seconds
    while below := [child for child in _below(members) if child not in members]:
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if time.monotonic() >= deadline:
            break
        time.sleep(0.01)
    for process in members:
        with contextlib.suppress(psutil.Error):
            process.kill()
    while any(map(_is_living, members)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not below and not any(map(_is_living, members))


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _below(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += [child for child in process.children(recursive=True) if _is_living(child)]
    return found


def _is_living(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def signal_name(number: int) -> str:
    """SIGKILL for 9, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
