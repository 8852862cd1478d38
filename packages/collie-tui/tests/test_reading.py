"""Reading runs: logs, curves, summaries, failures. Pure functions on files."""

import math
import time

import pytest

from collie import jobs
from collie.events import Alert, Bye, Checkpoint, Eval, Sample, decode
from collie.jobs import Curve, LogTail, Means, Peeker, RunReader, Series, State
from collie.jobs._failure import first_failure
from collie.jobs._order import Ladder, Rung, StopOrder
from collie.jobs._outcome import outcome_of


def _events(*rows):
    now = time.time()
    return [(event, step, now) for event, step in rows]


def test_a_reader_and_a_look_at_the_ends_agree(make_run):
    """What `ls` shows of a run is what the dashboard shows after reading it all."""
    run = make_run("run", "running", ranks=2, steps=50, total=200)
    reader = RunReader(run)
    reader.refresh()
    view = reader.view()
    assert view.summary == jobs.summary(run)
    assert (view.summary.step, view.summary.total, view.summary.loss) == (50, 200, 4.0 / 50)
    assert view.summary.throughput == pytest.approx(2 * 100 / 0.5)  # tokens / seconds of both ranks
    assert view.summary.eta == pytest.approx(150 * 1.0)  # a step a second by the clock, though a step takes half of it
    assert view.ranks[1].memory == 2**30 and view.ranks[0].tgs == pytest.approx(200)


def test_tokens_of_a_replica_count_once(make_run):
    """Two tensor-parallel ranks read the same tokens: each has half of them to itself."""
    run = make_run("tp", "running", ranks=2)
    for path in run.event_files():
        path.write_text(path.read_text().replace('"dp_size":2,"tp_size":1', '"dp_size":1,"tp_size":2'))
    assert jobs.summary(run).throughput == pytest.approx(100 / 0.5)


def test_only_the_end_of_a_long_file_is_looked_at(make_run, monkeypatch):
    """A line in a list costs the same after a million steps."""
    run = make_run("long", "running", ranks=1, steps=3000, total=3000)
    decoded = []
    monkeypatch.setattr("collie.jobs._peek.decode", lambda line: decoded.append(line) or decode(line))
    peeker = Peeker()
    assert peeker.ranks(run)[0].step == 3000
    assert 0 < len(decoded) < 200
    count = len(decoded)
    assert peeker.ranks(run)[0].step == 3000 and len(decoded) == count  # an unchanged file is not read again


def test_a_reader_takes_what_is_new_and_whole(make_run):
    """A torn last line waits; a broken one is counted; nothing is read twice."""
    run = make_run("torn", "running", ranks=1, steps=3)
    reader = RunReader(run)
    assert len(reader.refresh()) == 4  # hello and three steps
    path = run.event_files()[0]
    line = path.read_text().splitlines()[-1].replace('"seq":3', '"seq":4').replace('"step":2', '"step":3')
    with path.open("a") as file:
        file.write(line[:30])
        file.flush()
        assert reader.refresh() == []
        file.write(line[30:] + "\nnot json\n")
        file.flush()
    assert [record.step for record in reader.refresh()] == [3]
    assert reader.view().summary.step == 4 and reader.view().lost_events == 1


def test_catching_up_goes_in_steps(make_run):
    """A long history is read in pieces, so that something is shown soon."""
    run = make_run("long", "running", ranks=1, steps=500, total=500)
    reader = RunReader(run)
    reader.refresh(limit=100)
    assert reader.view().behind and reader.view().summary.step < 500
    while reader.view().behind:
        reader.refresh(limit=100)
    assert reader.view().summary.step == 500 and reader.view().loss.count == 500


def test_evaluations_texts_checkpoints_and_alerts(make_run):
    """The last of each evaluator, the texts of the last evaluation only, the last checkpoint."""
    extra = _events(
        (Eval("ppl", {"ppl": 9.0}, 1.0, 8), 4),
        (Sample("a", "old"), 4),
        (Checkpoint("/x", 1.0), 5),
        (Eval("ppl", {"ppl": 3.0}, 1.0, 8), 9),
        (Eval("decode", {"bleu": 30.0}, 1.0, 8), 9),
        (Sample("a", "new", "newer"), 9),
        (Sample("b", "too"), 9),
        (Alert("warning", "events_dropped", "3 events were dropped."), 9),
    )
    reader = RunReader(make_run("run", "running", extra={0: extra}))
    reader.refresh()
    view = reader.view()
    assert [(entry.name, entry.results, entry.step) for entry in view.evaluations] == [
        ("ppl", (("ppl", 3.0),), 10),
        ("decode", (("bleu", 30.0),), 10),
    ]
    assert [(sample.prompt, sample.output, sample.target) for sample in view.samples] == [
        ("a", "new", "newer"),
        ("b", "too", None),
    ]
    assert view.evaluated_at == (5, 10) and view.checkpoint[1] == 6
    assert [alert.code for alert in view.alerts] == ["events_dropped"]


def test_a_series_is_bounded_and_keeps_its_extremes():
    """100,000 values in at most 64 stretches; the one spike among them survives with its height."""
    series = Series(capacity=64)
    for x in range(100_000):
        series.add(x, 1000.0 if x == 77_777 else math.sin(x / 1000))
    curve = series.curve()
    assert 32 <= len(curve.points) <= 65
    assert max(point.high for point in curve.points) == 1000.0
    assert min(point.low for point in curve.points) == pytest.approx(-1.0, abs=1e-5)
    assert curve.points[0].first == 0 and curve.points[-1].last == 99_999
    assert series.curve() is curve
    series.add(100_000, math.nan)
    assert series.curve().gaps == (100_000,) and series.curve().points == curve.points
    assert Series().curve() == Curve()


def test_a_tail_follows_a_file(tmp_path):
    """Whole lines once each, the line being written apart, a cut file from its beginning, bytes that are no UTF-8."""
    path = tmp_path / "log"
    tail = LogTail(path)
    assert tail.read() == []
    path.write_bytes(b"one\ntwo\nthr")
    assert tail.read() == ["one", "two"] and tail.partial == "thr"
    with path.open("ab") as file:
        file.write(b"ee\n 10%\r 20%\r\n\x1b[31mred\x1b[0m\ta\x00\xff\n50%\r60%\r")
    assert tail.read() == ["three", " 20%", "red     a\ufffd"] and tail.partial == "60%"
    path.write_bytes(b"new\n")
    assert tail.read() == ["new"]


def test_a_tail_can_begin_near_the_end(tmp_path):
    """A gigabyte is not read for its last lines, and the line that the cut falls into is left out."""
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(100_000)))
    lines = LogTail(path, start=1000).read()
    assert lines[-1] == "line 99999" and len(lines) == 90  # 11 bytes each; the 91st is cut
    assert lines == [f"line {number}" for number in range(100_000 - len(lines), 100_000)]


def _torchrun_log(run, *failed):
    """As torchrun 2.13 prints it; the first of `failed` (rank, exit code) is its root cause."""
    (root, code), *others = failed
    text = "Failures:\n"
    for rank, exit_code in others:
        text += (
            f"[1]:\n  time      : x\n  rank      : {rank} (local_rank: {rank})\n  exitcode  : {exit_code} (pid: 6389)\n"
        )
    text += "Root Cause (first observed failure):\n[0]:\n  time      : 2026-11-24_03:50:04\n  host      : localhost\n"
    text += f"  rank      : {root} (local_rank: {root})\n  exitcode  : {code} (pid: 6390) \n  error_file: <N/A>\n"
    (run.logs / "torchrun.log").write_text(text)


def _stderr(run, rank, text):
    jobs.rank_logs(run)[rank].stderr.write_text(text)


TRACEBACK = """[rank{0}]: Traceback (most recent call last):
[rank{0}]:   File "train.py", line 3, in <module>
[rank{0}]: {1}
"""


def test_a_rank_that_lost_its_peer_is_not_the_first(make_run):
    """torchrun blames rank 0, which only saw its connection close; rank 1 has the reason."""
    run = make_run("run", "failed")
    _torchrun_log(run, (0, 1), (1, 1))
    _stderr(run, 0, TRACEBACK.format(0, "RuntimeError: [pair.cc:553] Connection closed by peer [127.0.0.1]:24288"))
    _stderr(run, 1, TRACEBACK.format(1, "KeyError: 'lr'"))
    failure = first_failure(run, Peeker().ranks(run), 1)
    assert failure.sentence() == "rank 1 after step 10: KeyError: 'lr'"
    assert failure.tail[0] == "Traceback (most recent call last):"


def test_the_earliest_goodbye_counts_before_torchruns_word(make_run):
    """Ranks that fail within one of torchrun's looks are told apart by their own clocks."""
    late, early = Bye("failed", "RuntimeError: gone"), Bye("failed", "RuntimeError: first")
    run = make_run("run", "failed", ranks=3, extra={0: [(late, 10, 2000.0)], 2: [(early, 10, 1999.9)]})
    _torchrun_log(run, (0, 1), (2, 1))
    failure = first_failure(run, Peeker().ranks(run), 1)
    assert (failure.rank, failure.message) == (2, "RuntimeError: first")


@pytest.mark.parametrize(
    ("code", "stderr", "message"),
    [
        (7, "", "exit status 7"),
        (7, "usage: train.py\nbad flag\n", "exit status 7: bad flag"),
        (-11, "", "ended by SIGSEGV"),
        (-9, "", "killed by SIGKILL, as the kernel does to the largest process when host memory runs out"),
        (
            1,
            TRACEBACK.format(1, "torch.OutOfMemoryError: CUDA out of memory."),
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
    ],
)
def test_how_a_rank_ended_in_words(make_run, code, stderr, message):
    """From torchrun's report and the rank's last lines; the others, which torchrun ended, are not blamed."""
    run = make_run("run", "failed")
    _torchrun_log(run, (1, code), (0, -15))
    _stderr(run, 1, stderr)
    failure = first_failure(run, Peeker().ranks(run), 1)
    assert (failure.rank, failure.message, failure.exit_code) == (1, message, code)


def test_torchs_error_file_is_read(make_run):
    """What @record writes, in both of its forms."""
    run = make_run("run", "failed")
    folder = jobs.rank_logs(run)[1].folder
    (folder / "error.json").write_text(
        '{"message": {"message": "ValueError: x", "extraInfo": {"py_callstack": "…", "timestamp": "1700000000"}}}'
    )
    failure = first_failure(run, Peeker().ranks(run), 1)
    assert (failure.rank, failure.message) == (1, "ValueError: x")
    (folder / "error.json").write_text('{"message": "SignalException: y"}')
    assert first_failure(run, Peeker().ranks(run), 1).message == "SignalException: y"


def test_a_failure_of_torchrun_itself(make_run):
    """Where no rank is to blame, torchrun's own last words count."""
    run = make_run("run", "failed")
    (run.logs / "torchrun.log").write_text("usage: …\nrun.py: error: unrecognized arguments: --nope\n")
    failure = first_failure(run, Peeker().ranks(run), 2)
    assert failure.sentence() == "torchrun: exit status 2: run.py: error: unrecognized arguments: --nope"


def test_a_dead_rank_is_no_stop_though_the_others_say_so(make_run):
    """torchrun sends TERM to the rest, whose Trainer then stops in good order; the one without a goodbye failed."""
    run = make_run("run", "running", extra={0: [(Bye("stopped"), 10, time.time())]})
    _torchrun_log(run, (1, -9))
    assert outcome_of(run, 1, Ladder())["outcome"] is State.FAILED


def test_term_to_torchrun_is_a_stop_when_every_rank_says_so(make_run):
    """Its exit status is 1 all the same."""
    assert outcome_of(make_run("run", "stopped"), 1, Ladder())["outcome"] is State.STOPPED


def test_a_failure_before_the_order_stays_a_failure(make_run):
    """Pressing stop while torchrun is still ending the others does not turn a failure into a stop."""
    run = make_run("run", "running", extra={0: [(Bye("failed", "ValueError: x"), 10, time.time() - 5)]})
    ladder = Ladder()
    ladder.give(StopOrder(Means.STEP))
    assert outcome_of(run, 1, ladder)["outcome"] is State.FAILED


def test_the_ladder_climbs_by_the_clock():
    """Request, TERM, KILL, each after its grace; a harder order hurries it, a softer one does not call it back."""
    ladder = Ladder()
    assert ladder.climb(0.0, ranks_listen=True) is None
    ladder.give(StopOrder(Means.STEP, t=1.0, step_grace=10, term_grace=5))
    assert ladder.climb(100.0, ranks_listen=True) is Rung.REQUEST
    assert ladder.climb(109.9, ranks_listen=False) is None  # they have said goodbye: time to end in good order
    assert ladder.climb(110.0, ranks_listen=True) is Rung.TERM
    ladder.give(StopOrder(Means.STEP, t=2.0, step_grace=10, term_grace=5))
    assert ladder.climb(110.1, ranks_listen=True) is None
    assert ladder.climb(115.0, ranks_listen=True) is Rung.KILL
    assert ladder.climb(999.0, ranks_listen=True) is None


def test_ranks_that_do_not_listen_are_not_waited_for():
    """Nobody would read the request."""
    ladder = Ladder()
    ladder.give(StopOrder(Means.STEP))
    assert ladder.climb(0.0, ranks_listen=False) is Rung.TERM


def test_states_of_runs_without_a_supervisor(make_run):
    """They are what their ranks say and what their processes show."""
    assert jobs.summary(make_run("a", "running", managed=False)).state_word == "unmanaged"
    assert jobs.summary(make_run("b", "finished", managed=False)).state_word == "finished"
    assert jobs.summary(make_run("c", "stopped", managed=False)).state_word == "stopped"
    failed = make_run("d", "running", managed=False, extra={0: _events((Bye("failed", "ValueError: x"), 10))})
    assert jobs.summary(failed).status.message == "rank 0 after step 10: ValueError: x"
    gone = make_run("e", "running", managed=False)
    for path in gone.event_files():
        path.write_text(path.read_text().replace('"process_start":', '"process_start":1.0,"was":'))
    assert jobs.summary(gone).state_word == "lost"


def test_an_unmanaged_run_is_asked_to_stop(make_run):
    """There is nobody to make it, so nothing else is offered."""
    run = make_run("a", "running", managed=False)
    jobs.stop(run)
    assert [request.kind for request in run.pending()] == ["stop"]
    jobs.stop(run)
    assert len(run.pending()) == 1


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "12ms"), (3.0, "3.0s"), (59.6, "1m00s"), (185, "3m05s"), (7860, "2h11m"), (None, "—")]
)
def test_durations(value, text):
    """Two units at most."""
    assert jobs.format_duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.18349, "1.183"), (0.01234, "0.0123"), (2e-5, "2.0e-5"), (12345.6, "12346"), (math.nan, "nan"), (0.0, "0")],
)
def test_numbers(value, text):
    """Four digits."""
    assert jobs.format_number(value) == text


@pytest.mark.parametrize(("value", "text"), [(812, "812"), (58_200, "58.2k"), (999_600, "1.00M"), (None, "—")])
def test_counts(value, text):
    """Three digits and a letter."""
    assert jobs.format_count(value) == text


def test_a_restart_goes_on_with_the_curve(make_run):
    """It writes files of its own: the newest attempt of a rank is shown, and its losses are added."""
    run = make_run("again", "running", ranks=1, steps=5)
    first = run.event_files()[0]
    second = first.with_name("rank-00000.a1.jsonl")
    second.write_text(
        "".join(line.replace('"attempt":0', '"attempt":1') + "\n" for line in first.read_text().splitlines()[:3])
    )
    reader = RunReader(run)
    reader.refresh()
    view = reader.view()
    assert (view.ranks[0].attempt, view.ranks[0].step, view.loss.count) == (1, 2, 7)
