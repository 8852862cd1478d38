"""One line about a run: what `ls` prints and what the dashboard's table of runs shows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collie.events import RunFolder
from collie.jobs._fields import plain, text_of, time_of, whole_of
from collie.jobs._peek import Peeker
from collie.jobs._rank import RankView
from collie.jobs._state import State
from collie.jobs._status import Status, status

_ID = re.compile(r"\d{8}-\d{6}-(.+)-([0-9a-f]{4})")


@dataclass(frozen=True, slots=True)
class Summary:
    """A run at one moment; None where it is not known.

    Attributes:
        id: name of the run's folder.
        name: the part of it that a person chose.
        nproc: ranks on this node that were asked for, or else that spoke.
        created: seconds since the epoch.
        step: number of steps that every rank has finished.
        total: steps the run will make.
        loss: of the last step.
        throughput: input tokens a second over all ranks.
        eta: seconds to the last step at the present pace.
        t: seconds since the epoch of the newest event of any rank.
        unreadable: whether the folder could not be made sense of; the status' message then says why.
    """

    id: str
    name: str
    path: Path
    status: Status
    script: str = ""
    nproc: int | None = None
    created: float | None = None
    step: int | None = None
    total: int | None = None
    epoch: int | None = None
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    throughput: float | None = None
    eta: float | None = None
    t: float | None = None
    unreadable: bool = False

    @property
    def mark(self) -> str:
        """The four hex digits that tell runs of one name apart."""
        match = _ID.fullmatch(self.id)
        return match[2] if match else ""

    @property
    def state_word(self) -> str:
        """The state, "unmanaged" for one that runs without a supervisor of ours, or "unreadable"."""
        if self.unreadable:
            return "unreadable"
        return "unmanaged" if self.status.live and not self.status.managed else str(self.status.state)

    def as_dict(self) -> dict[str, Any]:
        """The form that `collie-tui ls --json` prints."""
        failure = self.status.failure
        return {
            "id": self.id,
            "name": self.name,
            "path": str(self.path),
            "state": "unreadable" if self.unreadable else str(self.status.state),
            "managed": self.status.managed,
            "message": self.status.message,
            "exit_code": self.status.exit_code,
            "failed_rank": failure.rank if failure else None,
            "script": self.script,
            "nproc": self.nproc,
            "created": self.created,
            "step": self.step,
            "total": self.total,
            "loss": self.loss,
            "lr": self.lr,
            "tokens_per_second": self.throughput,
            "eta_seconds": self.eta,
            "last_event": self.t,
        }


def display_name(run_id: str) -> str:
    """The name in a run's id; the whole id where it was not made by us."""
    match = _ID.fullmatch(run_id)
    return plain(match[1] if match else run_id)


def summarise(run: RunFolder, ranks: Sequence[RankView]) -> Summary:
    """Put a run's files and its ranks' views together."""
    job = run.read_job() or {}
    now = status(run, ranks)
    steps = [rank.step for rank in ranks if rank.step is not None]
    speaker = next((rank for rank in ranks if rank.step is not None), None)
    step = min(steps) if steps else None
    total = speaker.total if speaker else None
    speeds = [rank.tgs for rank in ranks if rank.tgs is not None]
    eta = None
    if now.live and step is not None and total is not None and speaker is not None and speaker.pace is not None:
        eta = max(0, total - step) * speaker.pace
    nproc = whole_of(job.get("nproc"))
    return Summary(
        id=run.id,
        name=display_name(run.id),
        path=Path(run.path),
        status=now,
        script=text_of(job.get("script")),
        nproc=_world(ranks) if nproc is None else nproc,
        created=time_of(job.get("created")),
        step=step,
        total=total,
        epoch=speaker.epoch if speaker else None,
        loss=next((rank.loss for rank in ranks if rank.loss is not None), None),
        lr=speaker.lr if speaker else None,
        grad_norm=speaker.grad_norm if speaker else None,
        throughput=sum(speeds) if speeds else None,
        eta=eta,
        t=max((rank.t for rank in ranks if rank.t is not None), default=None),
    )


def _world(ranks: Sequence[RankView]) -> int | None:
    return next((rank.world_size for rank in ranks if rank.world_size is not None), len(ranks) or None)


def summary(run: RunFolder, peeker: Peeker | None = None) -> Summary:
    """Look at a run without reading it all."""
    return summarise(run, (peeker or Peeker()).ranks(run))


def unreadable(run: RunFolder, error: Exception) -> Summary:
    """What stands in a list for a run that cannot be made sense of, so that it hides no other."""
    told = plain(f"unreadable: {type(error).__name__}: {error}")
    return Summary(run.id, display_name(run.id), Path(run.path), Status(State.LOST, False, told), unreadable=True)
