"""Judges how a job ended. torchrun exits with 1 after failures and stops alike; what was asked tells them apart."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from collie.events import RunFolder
from collie.jobs._failure import first_failure
from collie.jobs._order import Ladder, Rung
from collie.jobs._peek import Peeker
from collie.jobs._rank import RankView
from collie.jobs._state import State
from collie.jobs._status import Failure


def outcome_of(run: RunFolder, exit_code: int | None, ladder: Ladder) -> dict[str, Any]:
    """What to write into exit.json for a job whose torchrun ended with `exit_code` (None: nobody was told), but for the
    time."""
    ranks = Peeker().ranks(run)
    state = _judge(ranks, exit_code, ladder)
    failure: Failure | None = None
    if state is State.FAILED:
        failure = first_failure(run, ranks, exit_code)
        message = failure.sentence()
    elif state is State.STOPPED:
        if any(rank.outcome == "failed" for rank in ranks) and ladder.rung <= Rung.REQUEST:
            failure = first_failure(run, ranks, exit_code)
        message = _stopped_in_words(ranks, ladder, failure)
    else:
        step = _last_step(ranks)
        message = "" if step is None else f"{step} steps"
    return {
        "outcome": state,
        "exit_code": exit_code,
        "message": message,
        "first_failure": dataclasses.asdict(failure) if failure is not None else None,
    }


def _judge(ranks: Sequence[RankView], exit_code: int | None, ladder: Ladder) -> State:
    goodbyes = {rank.outcome for rank in ranks}
    order = ladder.order
    if exit_code is None and goodbyes == {"finished"}:
        return State.FINISHED
    if exit_code == 0:
        asked = "stopped" in goodbyes or (order is not None and "finished" not in goodbyes)
        return State.STOPPED if asked else State.FINISHED
    if order is not None:
        failed_before = any(rank.outcome == "failed" and (rank.t or order.t) < order.t for rank in ranks)
        return State.FAILED if failed_before else State.STOPPED
    # Somebody sent TERM to torchrun itself: every rank ended in good order, and torchrun exits with 1 all the same.
    # Where a rank died without a goodbye, the others may say "stopped" too, since torchrun then sends them TERM.
    return State.STOPPED if "stopped" in goodbyes and not goodbyes & {"failed", None} else State.FAILED


def _last_step(ranks: Sequence[RankView]) -> int | None:
    return min((rank.step for rank in ranks if rank.step is not None), default=None)


def _stopped_in_words(ranks: Sequence[RankView], ladder: Ladder, failure: Failure | None) -> str:
    step = _last_step(ranks)
    where = "before the first step" if step is None else f"after step {step}"
    if failure is not None:
        return f"stopped {where}, and on the way {failure.sentence()}"
    order = ladder.order
    if ladder.rung is Rung.KILL and order is not None:
        return f"killed {where}"
    if ladder.rung is Rung.TERM:
        return f"ended with TERM {where}"
    return f"stopped {where}, as asked"
