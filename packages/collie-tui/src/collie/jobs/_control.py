"""What others may do with a run: find it by name, stop it, wait for its end."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from collie.events import RunFolder, list_runs
from collie.interfaces import ConfigError, nearest
from collie.jobs._order import Means, StopOrder
from collie.jobs._peek import Peeker
from collie.jobs._state import State
from collie.jobs._status import Status, anyone_may_listen, status
from collie.jobs._summary import Summary, display_name, summary, unreadable

_FLAGS = {Means.TERM: "--now", Means.KILL: "--kill"}  # of collie-tui stop


def ls(root: Path | None = None) -> list[Summary]:
    """All runs, newest first."""
    peeker = Peeker()
    runs = [_look(run, peeker) for run in list_runs(root)]
    # An id tells the second only; sorting is stable where the time is not known.
    return sorted(runs, key=lambda run: run.created or 0.0, reverse=True)


def _look(run: RunFolder, peeker: Peeker) -> Summary:
    try:
        return summary(run, peeker)
    except Exception as error:  # whatever is wrong with one run, the others are listed
        return unreadable(run, error)


def find(name: str, root: Path | None = None) -> RunFolder:
    """The run that `name` means: its id, the start of an id, its name, or the four digits at the end of its id.

    Of several runs with one name, the one that is live is meant.

    Raises:
        ConfigError: no run, or more than one, is meant.
    """
    runs = list_runs(root)
    exact = [run for run in runs if run.id == name]
    found = exact or [
        run
        for run in runs
        if name and (run.id.startswith(name) or display_name(run.id) == name or run.id.endswith(f"-{name}"))
    ]
    if len(found) > 1:
        peeker = Peeker()
        found = [run for run in found if status(run, peeker.ranks(run)).live] or found
    if not found:
        choices = [display_name(run.id) for run in runs]
        close = nearest(name, choices)
        hint = f"Did you mean {close!r}?" if close else "`collie-tui ls` lists the runs."
        raise ConfigError(f"run={name!r} is no run's id or name. {hint}")
    if len(found) > 1:
        raise ConfigError(f"run={name!r} means {len(found)} runs: {_listed(found)}. Give more of the id.")
    return found[0]


def _listed(runs: Sequence[RunFolder], most: int = 4) -> str:
    names = [run.id for run in runs[:most]]
    return ", ".join(names) + (", …" if len(runs) > most else "")


def stop(run: RunFolder, means: Means = Means.STEP, *, step_grace: float = 300.0, term_grace: float = 30.0) -> Status:
    """Ask for a stop and return at once; a run that has ended already is left as it is.

    The ranks of a lost run are asked as long as one may live; nobody will confirm it (see `asked_to_stop`).

    Args:
        means: STEP asks the ranks to end after the step they are in, TERM and KILL do not wait for it. Asking again
            with a harder one hurries a stop.
        step_grace: seconds that the ranks have to end their step, TERM after that.
        term_grace: seconds that the workers have after TERM, KILL after that.

    Raises:
        ConfigError: `means` needs a supervisor and the run has none.
    """
    ranks = Peeker().ranks(run)
    now = status(run, ranks)
    supervised = now.managed and now.live
    if supervised:
        StopOrder(means, step_grace=step_grace, term_grace=term_grace).write(run)
    elif now.live or (now.state is State.LOST and anyone_may_listen(ranks)):
        if means is not Means.STEP:
            raise ConfigError(
                f"{_FLAGS[means]} needs a supervisor and {run.id} has none. "
                "Without one a run can only be asked to stop after its step."
            )
        if not asked_to_stop(run):
            run.request("stop")
    return now


def asked_to_stop(run: RunFolder) -> bool:
    """Whether a request to stop waits for the ranks' answer."""
    return any(request.kind == "stop" for request in run.pending())


def wait(run: RunFolder, timeout: float | None = None, on_change: Callable[[Status], None] | None = None) -> Status:
    """Wait until the run has ended, or `timeout` seconds; returns the status then.

    Args:
        on_change: called with each status that differs from the one before.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    peeker = Peeker()
    before: Status | None = None
    while True:
        now = status(run, peeker.ranks(run))
        if on_change is not None and now != before:
            on_change(now)
        before = now
        if not now.live or (deadline is not None and time.monotonic() >= deadline):
            return now
        time.sleep(0.1)
