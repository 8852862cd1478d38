"""Leaves a supervisor behind that looks after a run, and nothing at all where that fails."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collie.events import RUN_DIR_VARIABLE, RunFolder
from collie.interfaces import CollieError
from collie.jobs._logs import SUPERVISOR_LOG, last_lines, log_mode
from collie.jobs._process import end_session
from collie.jobs._state import State

_START_TIMEOUT = 60.0  # seconds; a cold network file system may take long to import from


class LaunchError(CollieError):
    """A job could not be started; nothing of it runs."""


def begin(run: RunFolder, job: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Write down what was asked and leave a supervisor behind that starts it.

    Raises:
        LaunchError: the supervisor did not start.
        KeyboardInterrupt: as it comes; what had been started by then is ended before.
    """
    try:
        run.write_job(job)
        _write_first_state(run, attempt=job.get("attempt", 0))
        leave_supervisor(run, {**environment, RUN_DIR_VARIABLE: str(run.path)})
    except KeyboardInterrupt:
        _record_end(run, State.STOPPED, "stopped before it began: interrupted while it was starting")
        raise


def _write_first_state(run: RunFolder, attempt: int) -> None:
    now, message = time.time(), "the supervisor is starting"
    run.write_state(
        {
            "state": State.STARTING,
            "t": now,
            "heartbeat": now,
            "message": message,
            "torchrun_pid": None,
            "attempt": attempt,
        }
    )


def leave_supervisor(run: RunFolder, environment: Mapping[str, str], *, adopt: bool = False) -> None:
    """Run the small process that forks the supervisor off and ends when that has taken hold of the run.

    Whatever goes wrong until then, nothing of the session stays behind: neither supervisor nor torchrun nor ranks.

    adopt: whether the job runs already; then a failure leaves it alone.

    Raises:
        LaunchError: the supervisor did not start.
    """
    log = Path(run.logs) / SUPERVISOR_LOG
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb") as output:
            os.fchmod(output.fileno(), log_mode(run))
            starter = subprocess.Popen(
                [sys.executable, "-P", "-m", "collie.jobs._main", str(run.path), *(["--adopt"] if adopt else [])],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,
            )
    except OSError as error:
        raise _failed_launch(run, adopt, f"the supervisor did not start: {error}") from error
    try:
        code = starter.wait(_START_TIMEOUT)
    except BaseException as error:
        gone = end_session(starter.pid)
        starter.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        left = "" if gone else f"; processes of session {starter.pid} could not be ended"
        seconds = f"{_START_TIMEOUT:g} seconds"
        raise _failed_launch(run, adopt, f"the supervisor did not start in {seconds} and was ended{left}") from error
    if code:
        lines = last_lines(log, 1)
        raise _failed_launch(run, adopt, f"the supervisor did not start: {lines[0] if lines else f'see {log}'}")


def _failed_launch(run: RunFolder, adopt: bool, message: str) -> LaunchError:
    if not adopt:
        _record_end(run, State.FAILED, message)
    return LaunchError(message[0].upper() + message[1:])


def _record_end(run: RunFolder, outcome: State, message: str) -> None:
    run.write_exit({"outcome": outcome, "exit_code": None, "message": message, "t": time.time(), "first_failure": None})
