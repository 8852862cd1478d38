"""Another attempt of a run that has ended: the same command in the same folder, from its last checkpoint."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collie.events import Checkpoint, EventReader, RunFolder
from collie.interfaces import ConfigError
from collie.jobs._fields import whole_of
from collie.jobs._leave import begin
from collie.jobs._lock import claimed
from collie.jobs._logs import EARLIER, TORCHRUN_LOG
from collie.jobs._peek import Peeker, rank_and_attempt
from collie.jobs._process import Identity
from collie.jobs._state import State
from collie.jobs._status import anyone_may_listen, status

_OF_AN_ATTEMPT = ("exit.json", "stop.json")
_LAST_WORD = 30.0  # seconds
HIDDEN = "<hidden>"
"""What stands in job.json for a value that may open doors."""


def last_checkpoint(run: RunFolder) -> str | None:
    """The folder of the checkpoint that was written last, as the run told it; None where it told of none."""
    found: tuple[float, str] | None = None
    for path in run.event_files():
        if rank_and_attempt(path)[0] == 0:
            for record in EventReader(path).read():
                if isinstance(record.event, Checkpoint) and (found is None or record.t >= found[0]):
                    found = (record.t, record.event.path)
    return found[1] if found is not None else None


def resume(run: RunFolder, *, anew: bool = False) -> None:
    """Start `run` again, as its next attempt; the Trainer goes on from the newest whole checkpoint it finds.

    The command, its folder and the environment variables that were written down are those of the first attempt; what
    was hidden there (tokens) comes from this process.

    Args:
        anew: begin at the beginning, whatever checkpoints there are.

    Raises:
        ConfigError: the run goes on, or may; it was not started here; it has no checkpoint; it is somebody else's.
        LaunchError: the supervisor did not start.
    """
    with claimed(run):
        _resume(run, anew)


def _resume(run: RunFolder, anew: bool) -> None:
    job = run.read_job() or {}
    _check(run, job)
    if not anew and last_checkpoint(run) is None:
        raise ConfigError(
            f"{run.id} has told of no checkpoint to go on from: begin anew (--anew), or start another run."
        )
    _await_end_of(job)
    attempt = 1 + max([whole_of(job.get("attempt")) or 0, *(rank_and_attempt(path)[1] for path in run.event_files())])
    for name in _OF_AN_ATTEMPT:  # how the last attempt ended stays on record
        if (run.path / name).exists():
            (run.path / name).replace(run.path / f"{Path(name).stem}.a{attempt - 1}.json")
    for folder in list(run.logs.iterdir()):
        if (folder.is_dir() or folder.name == TORCHRUN_LOG) and not folder.name.startswith(EARLIER):
            folder.rename(run.logs / f"{EARLIER}a{attempt - 1}-{folder.name}")
    for request in run.pending():
        run.resolve(request.id)
    recorded = {
        name: value for name, value in (job.get("env") or {}).items() if isinstance(value, str) and value != HIDDEN
    }
    again = {
        **job,
        "argv": _with_logs_in(run, job["argv"]),
        "attempt": attempt,
        "resume": None if anew else "auto",
        "supervisor": None,
    }
    begin(run, again, {**os.environ, **recorded})


def _check(run: RunFolder, job: dict[str, Any]) -> None:
    ranks = Peeker().ranks(run)
    now = status(run, ranks)
    if now.live:
        raise ConfigError(f"{run.id} is {now.state}: what has not ended cannot be resumed.")
    if now.state is State.LOST and anyone_may_listen(ranks):
        raise ConfigError(
            f"{run.id} is lost and one of its ranks may be alive: adopt it (collie-tui adopt {run.id}), or stop it."
        )
    if not job.get("managed") or job.get("adopted") or not job.get("argv"):
        raise ConfigError(
            f"{run.id} was started without collie-tui, which does not know how: start it yourself, with "
            "Trainer.train(resume=…)."
        )


def _await_end_of(job: dict[str, Any]) -> None:
    """A supervisor has a last word in state.json after the job's end was recorded: it must not come after ours."""
    supervisor = Identity.from_dict(job.get("supervisor"))
    deadline = time.monotonic() + _LAST_WORD
    while supervisor is not None and supervisor.is_alive():
        if time.monotonic() >= deadline:
            raise ConfigError(f"the supervisor of the last attempt (process {supervisor.pid}) has not ended yet.")
        time.sleep(0.02)


def _with_logs_in(run: RunFolder, argv: Sequence[Any]) -> list[str]:
    """The command with the log folder where the run's folder is now."""
    logs = f"--log-dir={Path(run.logs).absolute()}"
    return [logs if str(word).startswith("--log-dir=") else str(word) for word in argv]
