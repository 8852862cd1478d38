"""Jobs for tests: real processes, with a stand-in for torchrun, all of them ended after the test."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from collie import jobs
from collie.events import RunFolder

_HERE = Path(__file__).parent
LAUNCHER = [sys.executable, str(_HERE / "fake_torchrun.py")]
WORKER = _HERE / "worker.py"


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs, which commands and functions use by default."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)
    return tmp_path / "runs"


@pytest.fixture
def worker() -> Path:
    """The script of a rank."""
    return WORKER


@pytest.fixture
def launcher() -> list[str]:
    """A command in torchrun's place."""
    return LAUNCHER


@pytest.fixture
def until() -> Callable[..., Any]:
    """until(condition, seconds=20): its first true value; fails when there is none in time."""

    def wait(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)
        return value

    return wait


@pytest.fixture
def launch() -> Iterator[Callable[..., RunFolder]]:
    """launch(*arguments, nproc=2): a supervised job of worker.py; whatever is left of it afterwards is killed."""
    started: list[RunFolder] = []

    def start(*arguments: str, nproc: int = 2, name: str = "job", **options: Any) -> RunFolder:
        run = jobs.start(WORKER, arguments, nproc=nproc, name=name, launcher=LAUNCHER, **options)
        started.append(run)
        return run

    yield start
    for run in started:
        _kill_all(run)


def _kill_all(run: RunFolder) -> None:
    """End the supervisor first, then every process that has this run in its environment."""
    supervisor = (run.read_job() or {}).get("supervisor") or {}
    if supervisor and jobs.status(run).live:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor["pid"], signal.SIGKILL)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("COLLIE_RUN_DIR") == str(run.path):
                process.kill()
