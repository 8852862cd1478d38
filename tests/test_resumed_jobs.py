"""A real job through torchrun: saved, stopped, resumed where it stood; and adopted after its supervisor was killed."""

import os
import pathlib
import signal
import time

import psutil
import pytest

from collie import jobs
from collie.events import EventReader, Step
from collie.jobs import Means, State

SCRIPT = pathlib.Path(__file__).parent / "scripts" / "train_long.py"

pytestmark = pytest.mark.timeout(280)


@pytest.fixture
def job(tiny_moss, tmp_path, runs):
    """A long training on two ranks; ended after the test, whatever happened."""
    run = jobs.start(SCRIPT, [str(tiny_moss), str(tmp_path / "out")], nproc=2)
    yield run
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("COLLIE_RUN_DIR") == str(run.path):
                process.kill()
        except psutil.Error:
            continue


def until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"it did not happen in {seconds} s"
        time.sleep(0.05)
    return value


def losses(run, attempt):
    """Step → loss, as rank 0 told it in that attempt."""
    path = run.events / f"rank-00000.a{attempt}.jsonl"
    return {record.step: record.event.loss for record in EventReader(path).read() if isinstance(record.event, Step)}


def test_a_job_is_saved_stopped_resumed_and_adopted(job, monkeypatch):
    """What the second attempt trains is bitwise what the first one trained after the checkpoint."""
    until(lambda: (jobs.summary(job).step or 0) >= 3)
    (saved,) = jobs.ask(job, "checkpoint").wait(60)
    assert pathlib.Path(saved.event.path).parent == job.path / "checkpoints"
    until(lambda: (jobs.summary(job).step or 0) >= saved.step + 8)
    assert [one.event.name for one in jobs.ask(job, "evaluate").wait(60)]
    jobs.stop(job)
    assert jobs.wait(job, 60).state is State.STOPPED
    first = losses(job, 0)

    jobs.resume(job)
    until(lambda: (job.events / "rank-00000.a1.jsonl").exists() and len(losses(job, 1)) >= 5)
    again = losses(job, 1)
    begun = min(again)
    assert 0 < begun < max(first), "it went on from the checkpoint, and not from the beginning"
    shared = sorted(set(first) & set(again))
    assert len(shared) >= 4 and [first[step] for step in shared] == [again[step] for step in shared]

    monkeypatch.setattr("collie.jobs._status.HEARTBEAT_LATE", 1.0)
    os.kill(job.read_job()["supervisor"]["pid"], signal.SIGKILL)
    until(lambda: jobs.status(job).state is State.LOST)
    jobs.adopt(job)
    step = jobs.summary(job).step
    until(lambda: (jobs.summary(job).step or 0) > step + 2)
    jobs.stop(job, Means.TERM)
    assert jobs.wait(job, 90).state is State.STOPPED
    assert not jobs._adopt.found_processes(job).left()
