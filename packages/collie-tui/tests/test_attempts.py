"""What an attempt of a run says is told from what earlier ones said."""

import time

import pytest
from run_files import hello, write_events

from collie import jobs
from collie.events import Bye, Step
from collie.interfaces import ConfigError
from collie.jobs import State
from collie.jobs._logs import TORCHRUN_LOG
from collie.jobs._order import Ladder, StopOrder
from collie.jobs._outcome import outcome_of
from collie.jobs._watch import Watch

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def begun_again(make_run):
    """A run of two ranks that was stopped and is starting its second attempt, of which no rank has spoken yet."""
    run = make_run("again", "running", extra={rank: [(Bye("stopped"), 9, time.time())] for rank in (0, 1)})
    run.write_job({**run.read_job(), "attempt": 1})
    return run


def test_what_fails_before_its_first_word_is_not_what_it_was_before(begun_again):
    """The last attempt was stopped; this one could not import its modules."""
    assert outcome_of(begun_again, 1, Ladder())["outcome"] is State.FAILED
    assert jobs.Peeker().ranks(begun_again) == ()


def test_a_slow_start_of_another_attempt_is_no_stall(begun_again, monkeypatch):
    """The steps of the one before say nothing of how long loading a model takes."""
    watch = Watch(begun_again)
    assert watch.look() is None
    clock = time.monotonic() + 1000
    monkeypatch.setattr("collie.jobs._watch.time.monotonic", lambda: clock)
    assert watch.look() is None
    write_events(begun_again, 0, [(hello(), None, time.time())], attempt=1)
    clock += 1000
    assert watch.look() == (State.RUNNING, "")


def test_what_a_script_does_after_its_training_is_no_stall(make_run, monkeypatch):
    """A last evaluation, an export: the ranks have said goodbye. Another training is watched again."""
    run = make_run("after", "running", ranks=1, extra={0: [(Bye("finished"), 9, time.time())]})
    watch = Watch(run)
    watch.look()
    clock = time.monotonic() + 1000
    monkeypatch.setattr("collie.jobs._watch.time.monotonic", lambda: clock)
    assert watch.look() == (State.RUNNING, "the training has ended and the script goes on")
    write_events(run, 0, [(Step(1.0, 1e-3, 1, 1.0), 10, time.time())])
    clock += 10
    assert watch.look() == (State.RUNNING, "") and jobs.Peeker().ranks(run)[0].outcome is None
    clock += 1000
    assert watch.look()[0] is State.STALLED


def test_torchruns_report_of_an_earlier_attempt_is_put_away(launch):
    """Else the next failure would be laid to the rank that failed then."""
    run = launch("--steps", "6", "--fail-at", "3", "--save-at", "2")
    jobs.wait(run, 20)
    assert "Root Cause" in (run.logs / TORCHRUN_LOG).read_text()
    jobs.resume(run)
    assert jobs.wait(run, 20).state is State.FINISHED
    assert "Root Cause" not in (run.logs / TORCHRUN_LOG).read_text()
    assert run.read_state()["attempt"] == 1


def test_an_adopted_run_of_plain_torchrun_is_not_resumed(make_run):
    """Nobody knows the command: job.json has the script's own arguments."""
    run = make_run("plain", "finished", extra={0: []})
    run.write_job({**run.read_job(), "argv": ["train.py"], "managed": True, "adopted": True})
    with pytest.raises(ConfigError, match="started without collie-tui"):
        jobs.resume(run, anew=True)


def test_two_who_resume_start_it_once(launch, monkeypatch):
    """The second is told so, and changes nothing."""
    run = launch("--steps", "2")
    jobs.wait(run, 20)
    begin = jobs._resume.begin
    second = []

    def begin_and_again(*arguments):
        with pytest.raises(ConfigError) as told:
            jobs.resume(run, anew=True)
        second.append(str(told.value))
        begin(*arguments)

    monkeypatch.setattr("collie.jobs._resume.begin", begin_and_again)
    jobs.resume(run, anew=True)
    assert "is being resumed or adopted" in second[0]
    jobs.wait(run, 20)
    assert run.read_job()["attempt"] == 1


def test_a_kill_hurries_a_stop_whatever_the_clocks_say(launch, until):
    """The second order comes from a host whose clock is behind."""
    run = launch("--steps", "100000", "--deaf", "--stubborn")
    until(lambda: (jobs.summary(run).step or 0) > 1)
    jobs.stop(run)
    until(lambda: jobs.status(run).state is State.STOPPING)
    StopOrder(jobs.Means.KILL, t=time.time() - 3600).write(run)
    assert jobs.wait(run, 20).message.startswith("killed")
