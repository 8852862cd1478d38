"""The true state of a run, judged from its files and from whether its processes live."""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from collie.events import RunFolder
from collie.jobs._fields import plain, text_of, time_of, whole_of
from collie.jobs._process import Identity, same_process_alive
from collie.jobs._rank import RankView
from collie.jobs._state import State

HEARTBEAT_LATE = 5.0
"""Seconds without a heartbeat after which a supervisor that cannot be found on its own host is lost."""
HEARTBEAT_LATE_REMOTE = 60.0
"""The same for a supervisor on another host, whose processes cannot be looked at."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The first thing that went wrong.

    Attributes:
        rank: the rank it went wrong in, None when it was torchrun itself.
        message: one sentence, the exception where there was one.
        exit_code: status of the process, minus the number of the signal that killed it, None if not known.
        step: number of steps that the rank had finished.
        tail: last lines of the rank's stderr.
    """

    rank: int | None
    message: str
    exit_code: int | None = None
    step: int | None = None
    tail: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Which rank, at which step, what."""
        where = "torchrun" if self.rank is None else f"rank {self.rank}"
        when = "" if self.step is None else f" after step {self.step}"
        return f"{where}{when}: {self.message}"

    @classmethod
    def from_dict(cls, values: Any) -> "Failure | None":
        """Read back exit.json's first_failure."""
        if not isinstance(values, dict):
            return None
        tail = values.get("tail")
        return cls(
            whole_of(values.get("rank")),
            text_of(values.get("message")),
            whole_of(values.get("exit_code")),
            whole_of(values.get("step")),
            tuple(text_of(line) for line in tail) if isinstance(tail, list) else (),
        )


@dataclass(frozen=True, slots=True)
class Status:
    """What a run is doing.

    Attributes:
        managed: whether a supervisor of ours looks after it (else plain torchrun started it).
        message: a sentence that says more, "" if there is none.
        since: seconds since the epoch at which the state began, None if not known.
        exit_code: torchrun's, None while it runs or if not known.
        failure: the first failure of a failed run.
    """

    state: State
    managed: bool
    message: str = ""
    since: float | None = None
    exit_code: int | None = None
    failure: Failure | None = None

    @property
    def live(self) -> bool:
        """Whether the run may still make steps."""
        return not self.state.ended

    def sentence(self) -> str:
        """The state and what there is to say about it, each once."""
        if not self.message or self.message.startswith(str(self.state)):
            return self.message or str(self.state)
        return f"{self.state}: {self.message}"


def status(run: RunFolder, ranks: Sequence[RankView] = ()) -> Status:
    """The state of `run`; `ranks` (as read from its events) tell of runs that have no supervisor."""
    job = run.read_job() or {}
    if not job.get("managed", False):
        return _unmanaged(run, job, ranks)
    ended = _recorded_end(run)
    if ended is not None:
        return ended
    record = run.read_state() or {}
    state = State.parse(record.get("state")) or State.STARTING
    since = time_of(record.get("t"))
    if state.ended:
        return Status(state, True, text_of(record.get("message")), since)
    supervisor = Identity.from_dict(job.get("supervisor"))
    heartbeat = time_of(record.get("heartbeat")) or time_of(record.get("t")) or time_of(job.get("created")) or 0.0
    if _is_lost(supervisor, heartbeat):
        # It may have recorded its end between our two looks.
        return _recorded_end(run) or Status(
            State.LOST, True, "the supervisor is gone without a word; training may go on unwatched", heartbeat
        )
    return Status(state, True, text_of(record.get("message")), since)


def _recorded_end(run: RunFolder) -> Status | None:
    record = run.read_exit()
    if not record:
        return None
    state = State.parse(record.get("outcome")) or State.FAILED
    return Status(
        state,
        bool((run.read_job() or {}).get("managed", False)),
        text_of(record.get("message")),
        time_of(record.get("t")),
        whole_of(record.get("exit_code")),
        Failure.from_dict(record.get("first_failure")),
    )


def _is_lost(supervisor: Identity | None, heartbeat: float) -> bool:
    silence = time.time() - heartbeat
    if supervisor is None or not supervisor.is_local():
        return silence > HEARTBEAT_LATE_REMOTE
    # The heartbeat counts as well: another container of this host has the same boot but not the same pids.
    return silence > HEARTBEAT_LATE and not supervisor.is_alive()


def _unmanaged(run: RunFolder, job: dict[str, Any], ranks: Sequence[RankView]) -> Status:
    """A run without a supervisor is what its ranks say, and what their processes show."""
    ended = _recorded_end(run)
    if ended is not None:
        return ended
    since = max((rank.t for rank in ranks if rank.t is not None), default=time_of(job.get("created")))
    outcomes = {rank.outcome for rank in ranks}
    if "failed" in outcomes:
        first = next(rank for rank in ranks if rank.outcome == "failed")
        failure = Failure(first.rank, first.message or "it gave no reason", step=first.step)
        return Status(State.FAILED, False, plain(failure.sentence()), since, failure=failure)
    if ranks and None not in outcomes:
        stopped = "stopped" in outcomes
        message = next((rank.message for rank in ranks if rank.message), "")
        return Status(State.STOPPED if stopped else State.FINISHED, False, plain(message), since)
    if _anyone_alive(job, ranks):
        return Status(State.RUNNING if ranks else State.STARTING, False, "started without collie-tui", since)
    return Status(State.LOST, False, "its processes are gone without a goodbye", since)


def anyone_may_listen(ranks: Sequence[RankView]) -> bool:
    """Whether a rank without a goodbye lives here, or on another host, whose processes cannot be looked at."""
    for rank in ranks:
        if rank.outcome is not None or rank.pid is None:
            continue
        if rank.host != socket.gethostname():
            return True
        if rank.process_start is not None and same_process_alive(rank.pid, rank.process_start):
            return True
    return False


def _anyone_alive(job: dict[str, Any], ranks: Sequence[RankView]) -> bool:
    launcher = Identity.from_dict(job.get("supervisor") or job)
    if launcher is not None and launcher.is_alive():
        return True
    for rank in ranks:
        if rank.pid is None or rank.host is None:
            continue
        identity = Identity.from_dict({**job, "pid": rank.pid, "host": rank.host, "start_time": 0.0, "boot_id": ""})
        if identity is not None and not identity.is_local():
            if rank.t is not None and time.time() - rank.t < HEARTBEAT_LATE_REMOTE:
                return True
        elif rank.process_start is not None and same_process_alive(rank.pid, rank.process_start):
            return True
    return False
