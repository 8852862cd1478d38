"""Runs that go on: resumed after their end, and adopted without one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from collie import jobs
from collie.events import RunFolder
from collie.interfaces import ConfigError
from collie.jobs import State
from collie.jobs.cli import main

pytestmark = pytest.mark.timeout(60)
ENDLESS = ("--steps", "100000", "--seconds", "0.02")


def _stepping(run):
    return (jobs.summary(run).step or 0) > 1


def _kill_supervisor(run, monkeypatch, until):
    monkeypatch.setattr("collie.jobs._status.HEARTBEAT_LATE", 0.5)
    os.kill(run.read_job()["supervisor"]["pid"], signal.SIGKILL)
    until(lambda: jobs.status(run).state is State.LOST)


def test_a_run_goes_on_as_its_next_attempt(launch, until, capsys):
    """In the same folder, told to resume; the record of the first attempt stays."""
    run = launch("--steps", "40", "--fail-at", "35", "--save-at", "2", name="twice")
    assert jobs.wait(run, 20).state is State.FAILED
    assert jobs.last_checkpoint(run) == "/checkpoints/step-2"
    capsys.readouterr()
    assert main(["resume", "twice"]) == 0
    out = capsys.readouterr().out
    assert "goes on; its last checkpoint: /checkpoints/step-2" in out and "twice finished: 40 steps" in out
    assert out.count("step 1/40") <= 1, "steps of the first attempt are not told again"
    assert "resumed: auto" in out
    assert [path.name for path in run.event_files()] == [f"rank-0000{r}.a{a}.jsonl" for r in (0, 1) for a in (0, 1)]
    assert jobs.status(run).state is State.FINISHED and (run.path / "exit.a0.json").exists()
    assert {rank.attempt for rank in jobs.Peeker().ranks(run)} == {1}


def test_a_stopped_run_is_not_stopped_by_what_was_asked_before(launch, until):
    """The order and the requests of the first attempt are not those of the second."""
    run = launch(*ENDLESS, "--save-at", "2")
    until(lambda: jobs.last_checkpoint(run))
    jobs.stop(run)
    jobs.wait(run, 20)
    run.request("stop")
    jobs.resume(run)
    until(lambda: jobs.Peeker().ranks(run) and _stepping(run))
    step = jobs.summary(run).step
    until(lambda: (jobs.summary(run).step or 0) > step + 3)
    jobs.stop(run)
    assert jobs.wait(run, 20).state is State.STOPPED


def test_what_cannot_be_resumed_is_told(launch, make_run, until, monkeypatch):
    """Without a checkpoint, while it lives, while it may, or where nobody knows how it was started."""
    run = launch(*ENDLESS)
    until(lambda: _stepping(run))
    with pytest.raises(ConfigError, match="what has not ended cannot be resumed"):
        jobs.resume(run)
    _kill_supervisor(run, monkeypatch, until)
    # the worker's greeting names no host of ours: it says "here"
    jobs.stop(run)
    until(lambda: {rank.outcome for rank in jobs.Peeker().ranks(run)} == {"stopped"})
    done = make_run("done")
    with pytest.raises(ConfigError, match="no checkpoint to go on from: begin anew"):
        jobs.resume(launch_and_wait(launch))
    with pytest.raises(ConfigError, match="started without collie-tui"):
        jobs.resume(done)


def launch_and_wait(launch):
    run = launch("--steps", "1")
    jobs.wait(run, 20)
    return run


def test_a_lost_run_is_adopted_and_its_end_recorded(launch, until, monkeypatch, capsys):
    """A new supervisor finds torchrun by its identity, stops it, and writes how it ended."""
    run = launch(*ENDLESS, "--truthful", name="lost")
    until(lambda: _stepping(run))
    with pytest.raises(ConfigError, match="has a supervisor: it is"):
        jobs.adopt(run)
    _kill_supervisor(run, monkeypatch, until)
    assert main(["adopt", "lost"]) == 0
    assert "has a supervisor: running" in capsys.readouterr().out
    assert jobs.status(run).state is State.RUNNING and jobs.status(run).managed
    jobs.stop(run)
    status = jobs.wait(run, 20)
    assert (status.state, status.exit_code) == (State.STOPPED, None) and status.message.endswith("as asked")
    with pytest.raises(ConfigError, match="has ended: it is stopped"):
        jobs.adopt(run)


def test_an_adopted_run_may_finish_or_fail(launch, until, monkeypatch):
    """Nobody is told how torchrun exits, so the ranks' goodbyes say it."""
    for arguments, state in (
        (("--steps", "150"), State.FINISHED),
        (("--steps", "900", "--fail-at", "120"), State.FAILED),
    ):
        run = launch(*arguments, "--seconds", "0.02", "--truthful")
        until(lambda run=run: _stepping(run))
        _kill_supervisor(run, monkeypatch, until)
        jobs.adopt(run)
        status = jobs.wait(run, 30)
        assert status.state is state
    assert status.failure.rank == 1 and "the loss is nan" in status.message


def test_an_adopted_run_is_killed_with_all_that_it_started(launch, until, monkeypatch):
    """Workers that ignore TERM, each in a session of its own, after torchrun too was killed."""
    run = launch(*ENDLESS, "--truthful", "--stubborn", "--deaf")
    until(lambda: _stepping(run))
    _kill_supervisor(run, monkeypatch, until)
    jobs.adopt(run)
    os.kill(run.read_state()["torchrun_pid"], signal.SIGKILL)
    jobs.stop(run, jobs.Means.KILL)
    assert jobs.wait(run, 20).state is State.STOPPED
    assert not jobs._adopt.found_processes(run).left()


def test_a_run_of_plain_torchrun_is_adopted(runs, worker, launcher, until):
    """What nobody supervised can be looked after and stopped with more than a request."""
    run = RunFolder.create(runs, name="plain")
    run.write_job({"argv": [], "nproc": 1, "created": time.time(), "managed": False})
    flags = ["--nnodes=1", "--nproc-per-node=1", "--rdzv-id=x", "--redirects=3", f"--log-dir={run.logs}"]
    command = [*launcher, *flags, str(worker), *ENDLESS, "--truthful", "--deaf"]
    plain = subprocess.Popen(command, env={**os.environ, "COLLIE_RUN_DIR": str(run.path)})
    try:
        until(lambda: _stepping(run))
        assert jobs.summary(run).state_word == "unmanaged"
        jobs.adopt(run)
        assert jobs.summary(run).state_word == "running"
        jobs.stop(run, jobs.Means.KILL)
        until(lambda: plain.poll() is not None)
        assert jobs.wait(run, 20).state is State.STOPPED
    finally:
        plain.kill()
        plain.wait()


def test_nothing_to_adopt_is_told(make_run):
    """A lost run of which no process is left."""
    run = make_run("gone", "lost", heartbeat=1.0)
    run.write_job({**run.read_job(), "supervisor": None})
    for path in run.event_files():
        path.write_text(path.read_text().replace('"process_start":', '"process_start":1.0,"was":'))
    with pytest.raises(ConfigError, match="has no process on this host"):
        jobs.adopt(run)
    assert sys.platform == "linux"
