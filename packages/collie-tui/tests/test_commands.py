"""The commands about one run: what they print, and that it is true."""

import csv
import io
import json
import math
import os
import time

import pytest

from collie import jobs
from collie.events import Checkpoint, Eval, Sample
from collie.jobs._log_times import LogTimes
from collie.jobs._logs import rank_logs
from collie.jobs._tail import MergedTail
from collie.jobs.cli import main

pytestmark = pytest.mark.timeout(60)
ENDLESS = ("--steps", "100000", "--seconds", "0.02")


@pytest.fixture
def tui(capsys):
    """tui(*arguments): exit status, standard output, standard error."""

    def run(*arguments):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as error:
            code = error.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def running(launch, until):
    """running(*arguments): a job whose ranks have made steps."""

    def start(*arguments, **options):
        run = launch(*ENDLESS, *arguments, **options)
        until(lambda: (jobs.summary(run).step or 0) > 1)
        return run

    return start


def test_a_checkpoint_is_asked_for_and_told(running, tui):
    """Its folder, as the run says; and a full disk is no success."""
    running(name="saved")
    code, out, _ = tui("checkpoint", "saved", "--timeout", 20)
    assert code == 0 and "/checkpoints/step-" in out and "1.00 MiB" in out
    code, out, _ = tui("checkpoint", "saved", "--json", "--timeout", 20)
    (answer,) = json.loads(out)["answers"]
    assert answer["path"] == f"/checkpoints/step-{answer['step']}" and answer["bytes"] == 2**20
    running("--full", name="full")
    code, out, _ = tui("checkpoint", "full", "--timeout", 20)
    assert (code, out) == (1, "no space left on the device\n")


def test_an_evaluation_is_all_evaluators(running, tui):
    """Of one request, not of an earlier one; a run without evaluators says so."""
    running(name="evaluated")
    for _ in range(2):
        code, out, _ = tui("evaluate", "evaluated", "--json", "--timeout", 20)
        assert code == 0 and [one["name"] for one in json.loads(out)["answers"]] == ["ppl", "decode"]
    running("--evaluators", "0", name="none")
    code, out, _ = tui("evaluate", "none", "--timeout", 20)
    assert (code, out) == (1, "the run has no evaluators.\n")


def test_who_does_not_answer_is_told(running, tui):
    """A rank that reads no requests; and a run that is over is not asked at all."""
    run = running("--deaf", name="deaf")
    code, out, _ = tui("checkpoint", "deaf", "--timeout", 0.5)
    assert code == 1 and "did not checkpoint within 0.5 seconds" in out
    jobs.stop(run, jobs.Means.KILL)
    jobs.wait(run, 20)
    code, _, err = tui("evaluate", "deaf")
    assert code == 2 and "cannot be asked to evaluate: it is stopped" in err and not run.pending()


def test_a_prompt_is_answered_as_it_comes(running, tui):
    """Its pieces in order, what it cost, and why there is none; as a chat where that is asked for."""
    running(name="asked")
    code, out, err = tui("prompt", "asked", "one two", "--timeout", 20)
    assert (code, out) == (0, "one two end\n") and err.startswith("9 tokens at step ")
    code, out, _ = tui("prompt", "asked", "one", "--chat", "--json", "--timeout", 20)
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["ONE ", "end"]
    code, _, err = tui("prompt", "asked", "one", "--temperature", 9, "--timeout", 20)
    assert (code, err) == (1, "temperature=9 is too hot.\n")
    assert tui("prompt", "asked", " ")[0] == 2


def test_a_prompt_that_nobody_answers_is_taken_back(running, tui):
    """So that no answer is generated which nobody reads."""
    run = running("--deaf", name="mute")
    code, out, _ = tui("prompt", "mute", "hello", "--timeout", 0.5)
    assert code == 1 and "has said nothing for 0.5 seconds" in out
    asked, taken = run.pending()
    assert (asked.kind, taken.kind) == ("prompt", "cancel") and taken.arguments == {"request": asked.id}


def test_status_is_a_page_or_an_object(make_run, tui):
    """All that is known of a run, and how it stands as exit status."""
    now = time.time()
    extra = {0: [(Eval("ppl", {"ppl": 3.25}, 1.0, 8), 9, now), (Checkpoint("/c", 1.0), 9, now - 200)]}
    make_run("night", extra=extra)
    code, out, _ = tui("status", "night")
    assert code == 0
    assert "night  finished" in out and "step 10/10  loss 0.4000" in out and "ppl, step 10: ppl 3.250" in out
    assert "step 10, 3m ago" in out and [line.split()[:3:2] for line in out.splitlines()[-2:]] == [
        ["0", "10"],
        ["1", "10"],
    ]
    code, out, _ = tui("status", "night", "--json")
    told = json.loads(out)
    assert (told["state"], told["step"], len(told["ranks"])) == ("finished", 10, 2)
    assert told["evaluations"][0]["results"] == {"ppl": 3.25} and told["checkpoint"]["step"] == 10
    failure = {
        "rank": 1,
        "message": "ValueError: no",
        "exit_code": 1,
        "step": 3,
        "tail": ["Traceback", "ValueError: no"],
    }
    make_run("bad", "failed", failure=failure, message="rank 1 after step 3: ValueError: no")
    code, out, _ = tui("status", "bad")
    assert code == 1 and "bad  failed: rank 1 after step 3: ValueError: no" in out and "    Traceback\n" in out


def test_export_has_every_event(make_run, tui, tmp_path):
    """As rows and as objects; a text with line breaks stays one row, a loss that is no number is told."""
    now = time.time()
    text = Sample("a, b", 'line\n"two"', None)
    make_run("out", extra={0: [(text, 9, now), (Eval("e", {"ppl": 2.0, "bleu": math.nan}, 1.0, 8), 9, now)]})
    _, out, _ = tui("export", "out")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["rank"], row["step"]) for row in rows] == [(r, str(s)) for r in "01" for s in range(1, 11)]
    assert float(rows[3]["loss"]) == 1.0 and rows[3]["memory"] == str(2**30)
    _, out, _ = tui("export", "out", "--rank", 1, "--json")
    assert [one["loss"] for one in json.loads(out)] == [4.0 / step for step in range(1, 11)]
    _, out, _ = tui("export", "out", "--what", "samples")
    assert [row["output"] for row in csv.DictReader(io.StringIO(out))] == ['line\n"two"']
    file = tmp_path / "e.csv"
    tui("export", "out", "--what", "evaluations", "--output", file)
    with file.open(newline="") as stored:
        assert [(row["metric"], row["value"]) for row in csv.DictReader(stored)] == [("ppl", "2.0"), ("bleu", "nan")]
    assert tui("export", "out", "--what", "alerts", "--json")[1] == "[]\n"


def test_rm_deletes_what_is_over_alone(make_run, tui, monkeypatch):
    """Not without being told to, and never what may be alive."""
    done, live = make_run("done"), make_run("live", "running")
    (done.path / "checkpoints" / "step-1").mkdir(parents=True)
    code, _, err = tui("rm", "done", "live", "--yes")
    assert code == 2 and "is running: stop it first" in err and done.path.exists()
    assert "give --yes" in tui("rm", "done")[2]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    code, out, _ = tui("rm", "done")
    assert code == 1 and "1 checkpoint among it" in out and "nothing was deleted" in out and done.path.exists()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert tui("rm", "done", "done")[0] == 0
    assert not done.path.exists() and live.path.exists()


def test_a_folder_that_is_a_link_is_not_followed(make_run, tui, tmp_path):
    """What a run's folder only points to is not part of it."""
    run = make_run("linked")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (run.path / "link").symlink_to(precious)
    assert tui("rm", "linked", "--yes")[0] == 0
    assert (precious / "file").exists() and not run.path.exists()


def test_logs_are_merged_as_they_were_written(make_run, tui):
    """By the times that the supervisor noted; filtered, of one rank, of one stream."""
    run = make_run("logs", "running")
    noted = []
    for logs in rank_logs(run):
        logs.stdout.write_text("".join(f"rank {logs.rank} line {n}\n" for n in range(4)) + "not whole")
        size = len(f"rank {logs.rank} line 0\n")
        name = str(logs.stdout.relative_to(run.logs))
        noted += [[1000.0 + 2 * n + logs.rank, name, size * (n + 1)] for n in range(4)]
        noted.append([900.0, str(logs.stderr.relative_to(run.logs)), logs.stderr.stat().st_size])
    (run.logs / "times.jsonl").write_text("".join(json.dumps(line) + "\n" for line in noted) + "torn [1")
    _, out, _ = tui("tail", "logs", "--stream", "stdout", "-n", 5)
    assert out.splitlines() == [f"[{n % 2}] rank {n % 2} line {n // 2}" for n in range(3, 8)]
    assert tui("tail", "logs", "--rank", 1, "-n", 1)[1] == "rank 1 line 3\n"
    assert tui("tail", "logs", "--grep", "line [12]", "--rank", 0)[1] == "rank 0 line 1\nrank 0 line 2\n"
    assert tui("tail", "logs", "--grep", "line", "--invert")[1].splitlines() == [
        "[0!] warning from rank 0",
        "[1!] warning from rank 1",
    ]
    _, out, _ = tui("tail", "logs", "-n", 1, "--json")
    assert json.loads(out) == {"t": 1007.0, "rank": 1, "stream": "stdout", "line": "rank 1 line 3"}
    assert "no regular expression" in tui("tail", "logs", "--grep", "(")[2]


def test_the_end_of_a_large_log_costs_nothing(make_run):
    """A gigabyte is not read for its last lines."""
    run = make_run("large", ranks=1)
    (logs,) = rank_logs(run)
    with logs.stdout.open("wb") as file:
        file.truncate(2**30)  # a hole, which costs no disk
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast but one\nlast\n")
    began = time.perf_counter()
    lines = MergedTail(run, streams=("stdout",)).last(2)
    assert [line.text for line in lines] == ["last but one", "last"]
    assert time.perf_counter() - began < 0.5


def test_a_followed_job_is_told_to_its_end(running, tui, until):
    """Every line once, those at the end too, and the supervisor has noted when each was there."""
    run = running("--leave-child", name="seen")
    tail = MergedTail(run, streams=("stdout",))
    before = tail.last(10)
    jobs.stop(run)
    assert jobs.wait(run, 20).state is jobs.State.STOPPED
    lines = before + tail.fresh()
    assert sorted(line.rank for line in lines) == [0, 1] and all(line.text.startswith("left ") for line in lines)
    times = LogTimes(run)
    noted = [times.at(logs.stdout, logs.stdout.stat().st_size) for logs in rank_logs(run)]
    assert all(run.path.stat().st_ctime - 30 < t <= time.time() for t in noted)
    assert len(tui("tail", "seen", "--follow", "--stream", "stdout")[1].splitlines()) == 2
