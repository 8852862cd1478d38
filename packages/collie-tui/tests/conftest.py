"""Jobs for tests: real processes, with a stand-in for torchrun, all of them ended after the test; and run folders."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from collie import jobs
from collie.events import Bye, Event, RunFolder, Step

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))
from run_files import hello, write_events  # noqa: E402 - beside this file, which --import-mode=importlib does not see

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
def launch(runs: Path) -> Iterator[Callable[..., RunFolder]]:
    """launch(*arguments, nproc=2): a supervised job of worker.py; whatever is left of any run afterwards is killed."""

    def start(*arguments: str, nproc: int = 2, name: str = "job", **options: Any) -> RunFolder:
        return jobs.start(WORKER, arguments, nproc=nproc, name=name, launcher=LAUNCHER, **options)

    yield start
    _kill_all(runs)


def _kill_all(root: Path) -> None:
    """End every process that has a run under `root` in its environment, supervisors first."""
    for run in root.glob("*"):
        supervisor = (RunFolder(run).read_job() or {}).get("supervisor") or {}
        if supervisor and supervisor["pid"] != os.getpid() and jobs.status(RunFolder(run)).live:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor["pid"], signal.SIGKILL)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("COLLIE_RUN_DIR", "").startswith(f"{root}/") and process.pid != os.getpid():
                process.kill()


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that says it has torch, and whose torch.distributed.run is the stand-in."""
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\ncase "$2" in -c) exit 0;; esac\n'
        f'[ "$2 $3" = "-m torch.distributed.run" ] || exit 9\nshift 3\nexec {" ".join(LAUNCHER)} "$@"\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture
def slow_start(tmp_path: Path) -> dict[str, str]:
    """Variables under which the process that forks a supervisor off never hears that it is ready; the job goes on."""
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'collie.jobs._main' in sys.orig_argv:\n"
        "    read = os.read\n"
        "    os.read = lambda file, count: read(file, count) if count > 1 else time.sleep(600)\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.fixture
def make_run(runs: Path) -> Callable[..., RunFolder]:
    """make_run(name, outcome="finished", ranks=2, steps=10, …): the folder of a run that is over or seems to go on."""

    def make(
        name: str,
        outcome: str = "finished",
        *,
        ranks: int = 2,
        steps: int = 10,
        total: int = 10,
        extra: Mapping[int, Sequence[tuple[Event, int | None, float]]] | None = None,
        failure: dict[str, Any] | None = None,
        message: str = "",
        managed: bool = True,
        heartbeat: float | None = None,
    ) -> RunFolder:
        now = time.time()
        run = RunFolder.create(runs, name=name)
        live = outcome in ("starting", "running", "stopping")
        me = psutil.Process()
        identity = jobs._process.Identity.of().as_dict()
        job = {"argv": [], "script": "train.py", "nproc": ranks, "created": now - 100, "managed": managed}
        run.write_job({**job, "supervisor": identity if managed else None})
        if managed:
            beat = now + 1000 if heartbeat is None else heartbeat
            run.write_state({"state": "running" if outcome == "lost" else outcome, "t": now - 90, "heartbeat": beat})
        if managed and not live and outcome != "lost":
            code = 0 if outcome == "finished" else 1
            end = {"outcome": outcome, "exit_code": code, "message": message, "t": now, "first_failure": failure}
            run.write_exit(end)
        for rank in range(ranks):
            lines = [(hello(rank, ranks, pid=me.pid, start=me.create_time()), None, now - 90)]
            lines += [
                (Step(4.0 / done, 1e-3, 100, 0.5, total=total, grad_norm=0.5, memory=2**30), done - 1, now - 90 + done)
                for done in range(1, steps + 1)
            ]
            lines += (extra or {}).get(rank, ())
            if outcome in ("finished", "stopped"):
                lines.append((Bye(outcome), steps - 1, now - 80))
            write_events(run, rank, lines)
            folder = run.logs / f"{run.id}_x" / "attempt_0" / str(rank)
            folder.mkdir(parents=True)
            (folder / "stdout.log").write_text(f"hello from rank {rank}\nsecond line of rank {rank}\n")
            (folder / "stderr.log").write_text(f"warning from rank {rank}\n")
        return run

    return make
