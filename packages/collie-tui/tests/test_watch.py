"""What is worth an alert, what is a stall, and who is told."""

import json
import math
import random
import time
from collections import namedtuple

import pytest
from run_files import hello, write_events

from collie import jobs
from collie.events import Checkpoint, Phase, Step
from collie.jobs import State
from collie.jobs._detectors import Creep, NotFinite, Plateau, Slowdown, Spike, Straggler, robust_scores
from collie.jobs._watch import Watch

pytestmark = pytest.mark.timeout(60)


def found(detector, steps):
    """(code, rank, step) of each finding; steps: (rank, loss, seconds, memory)."""
    seen = []
    for index, (rank, loss, seconds, memory) in enumerate(steps):
        finding = detector.see(rank, index, Step(loss, 1e-3, 1, seconds, memory=memory))
        if finding is not None:
            seen.append((finding.code, finding.rank, finding.step))
            assert finding.message.endswith("."), "a sentence with a mend"
    return seen


def losses(*values):
    return [(0, value, 1.0, None) for value in values]


def noisy(count, level=2.0, seed=0):
    draw = random.Random(seed)
    return [level + draw.gauss(0, 0.05) for _ in range(count)]


def test_a_loss_that_is_no_number_is_told_once_each_time():
    """Again after it had come back."""
    seen = found(NotFinite(), losses(1.0, math.nan, math.nan, 1.0, math.inf))
    assert seen == [("nan", 0, 1), ("nan", 0, 4)]


def test_a_spike_is_told_from_noise_and_from_the_beginning():
    """A training that falls fast, and one that is noisy, have none."""
    assert found(Spike(), losses(*[8.0 / (n + 1) for n in range(200)])) == []
    assert found(Spike(), losses(*noisy(500))) == []
    assert found(Spike(), losses(*noisy(100), 9.0, 8.0, *noisy(50))) == [("spike", 0, 100)]


def test_a_plateau_is_one_that_lasts():
    """Slow progress is progress."""
    assert found(Plateau(), losses(*[3.0 - 0.001 * n for n in range(1000)])) == []
    falling = [3.0 - 0.01 * n for n in range(200)]
    assert found(Plateau(), losses(*falling, *noisy(800, level=1.0))) == [("plateau", 0, 599)]


def test_steps_that_take_longer_are_told_once():
    """One slow step is no slowdown, and the first steps are no measure."""
    quick, slow = (0, 1.0, 0.1, None), (0, 1.0, 0.2, None)
    assert found(Slowdown(), [(0, 1.0, 5.0, None)] * 5 + [quick] * 300) == []
    assert found(Slowdown(), [quick] * 100 + [slow] + [quick] * 100) == []
    seen = found(Slowdown(), [quick] * 100 + [slow] * 100 + [quick] * 100 + [slow] * 100)
    assert [code for code, _, _ in seen] == ["throughput", "throughput"]
    assert 110 <= seen[0][2] <= 120


def test_memory_that_grows_is_told_from_memory_that_varies():
    """Of the rank in which it does."""
    draw = random.Random(0)
    assert found(Creep(), [(0, None, 1.0, draw.randrange(10**9, 2 * 10**9)) for _ in range(2000)]) == []
    both = [(rank, None, 1.0, 10**9 + rank * n * 10**6) for n in range(1000) for rank in (0, 1)]
    assert [(code, rank) for code, rank, _ in found(Creep(), both)] == [("memory", 1)]


def test_the_slow_rank_is_named():
    """Among eight whose times differ a little; where all are slow none is."""
    draw = random.Random(0)
    steps = [
        (rank, None, draw.gauss(1.0, 0.03) * (1.5 if rank == 5 else 1.0), None) for _ in range(60) for rank in range(8)
    ]
    assert [(code, rank) for code, rank, _ in found(Straggler(), steps)] == [("straggler", 5)]
    assert found(Straggler(), [(rank, None, 1.0, None) for _ in range(60) for rank in range(8)]) == []


def test_robust_scores_are_those_of_the_median_deviation():
    """By hand: median 1.0, deviations 0.1, 0, 0.1, 1.0; 0.6745 · 1.0 / 0.1."""
    scores = robust_scores({0: 0.9, 1: 1.0, 2: 1.1, 3: 1.0, 4: 2.0})
    assert scores[4] == pytest.approx(6.745) and scores[2] == 0.0
    assert robust_scores({0: 1.0, 1: 9.0}) == {0: 0.0, 1: 0.0}


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def watched(make_run, monkeypatch):
    """A run that seems to go on, and a Watch that looks each time it is asked to."""
    monkeypatch.setattr("collie.jobs._watch._EVERY", 0.0)
    monkeypatch.setattr("collie.jobs._watch._DISK_EVERY", 0.0)
    told = []
    run = make_run("watched", "running", ranks=1)
    watch = Watch(run, told.append)
    watch._next_disk = math.inf
    return run, watch, told


def test_a_silence_is_judged_by_the_runs_own_times(watched, monkeypatch):
    """Ten steps' time, and while it saves or evaluates more than that."""
    run, watch, _ = watched
    assert watch.look() == (State.RUNNING, "")
    clock = time.monotonic()
    monkeypatch.setattr("collie.jobs._watch.time.monotonic", lambda: clock)
    clock += 50
    assert watch.look() == (State.RUNNING, "")
    clock += 20
    state, message = watch.look()
    assert state is State.STALLED and message == "no rank has written anything for 1m10s; a step takes 1.0s"
    write_events(run, 0, [(Phase("saving"), 10, time.time())])
    assert watch.look() == (State.SAVING, "")
    clock += 800
    assert watch.look() == (State.SAVING, "")
    clock += 200
    assert watch.look()[0] is State.STALLED
    write_events(run, 0, [(Phase("training"), 10, time.time()), (Step(1.0, 1e-3, 1, 30.0), 10, time.time() + 300)])
    assert watch.look()[0] is State.RUNNING
    clock += 100
    assert watch.look()[0] is State.RUNNING, "one step took five minutes"


def test_a_disk_that_is_nearly_full_is_told_once(watched, monkeypatch):
    """Full is what has no room for two checkpoints."""
    run, watch, told = watched
    watch._next_disk = 0.0
    free = 40 * 2**30
    monkeypatch.setattr("collie.jobs._watch.shutil.disk_usage", lambda path: Usage(2**40, 0, free))
    watch.look()
    write_events(run, 0, [(Checkpoint("/c", 1.0, 15 * 2**30), 9, time.time())])
    watch.look()
    assert not told
    free = 29 * 2**30
    watch.look()
    watch.look()
    assert [alert.code for alert in told] == ["disk"] and "29.0 GiB left of 1.00 TiB" in told[0].message
    reader = jobs.RunReader(run)
    reader.refresh()
    assert [alert.code for alert in reader.view().alerts] == ["disk"]


def test_what_was_before_we_came_is_no_news(watched):
    """Whoever adopts a run of a day is not told of its first hour; a new attempt is judged anew."""
    run, watch, told = watched
    write_events(run, 0, [(Step(math.nan, 1e-3, 1, 1.0), 10, time.time() - 1000)])
    watch.look()
    assert not told
    write_events(run, 0, [(hello(), None, time.time()), (Step(math.nan, 1e-3, 1, 1.0), 3, time.time())], attempt=1)
    watch.look()
    assert [alert.code for alert in told] == ["nan"]


def test_a_command_is_told_of_alerts_and_the_end(launch, tmp_path, until):
    """With the dashboard closed, as JSON on its input; what it prints is kept, and it holds nothing up."""
    file = tmp_path / "told.jsonl"
    command = f"cat >> {file}; echo heard"
    run = launch("--steps", "30", "--seconds", "0.1", "--nan-at", "5", name="told", notify=command)
    assert jobs.wait(run, 30).state is State.FINISHED
    until(lambda: (run.logs / "notify.log").exists() and (run.logs / "notify.log").read_text() == "heard\nheard\n")
    alert, end = map(json.loads, file.read_text().splitlines())
    assert (alert["kind"], alert["code"], alert["name"], alert["run"]) == ("alert", "nan", "told", run.id)
    assert alert["message"].startswith("the loss of step 5 is nan. Lower the learning rate")
    assert (end["kind"], end["message"]) == ("finished", "30 steps")


def test_a_failure_is_told(launch, tmp_path, until):
    """With the sentence about the rank that failed first."""
    file = tmp_path / "told.jsonl"
    run = launch("--steps", "50", "--fail-at", "3", notify=f"cat >> {file}; exit 3")
    assert jobs.wait(run, 30).state is State.FAILED
    until(lambda: file.exists() and file.read_text().endswith("\n"))
    (told,) = map(json.loads, file.read_text().splitlines())
    assert told["kind"] == "failed" and told["message"].startswith("rank 1 after step 3: ValueError")
