"""Logs as programs write them: lines without end, without an end, and more at once than one look takes in."""

import itertools
import os
import time

import pytest

from collie import jobs
from collie.jobs._logs import LogTail, rank_logs
from collie.jobs._tail import MergedTail
from collie.jobs.cli import main

pytestmark = pytest.mark.timeout(60)
MEGABYTE = 2**20


@pytest.fixture
def log(make_run):
    """The standard output of a run's only rank."""
    run = make_run("odd", ranks=1)
    (logs,) = rank_logs(run)
    logs.stderr.unlink()
    return run, logs.stdout


def test_a_line_of_hundreds_of_megabytes_costs_little(log):
    """A progress bar that never ends its line, or a tensor printed whole: its end is shown, and memory is bounded."""
    run, path = log
    with path.open("wb") as file:
        file.write(b"first\n")
        for step in range(300):
            file.write(b"x" * (MEGABYTE - 8) + b"%7d\r" % step)
        file.write(b"299 done\nlast\n")
    began = time.perf_counter()
    texts = [line.text for line in MergedTail(run).last(3)]
    assert texts == ["first", "299 done", "last"]
    assert time.perf_counter() - began < 3
    path.write_bytes(b"y" * (20 * MEGABYTE) + b"end\n")
    (line,) = MergedTail(run).last(1)
    assert line.text.endswith("end") and len(line.text) <= MEGABYTE
    tail = LogTail(path)
    texts = list(itertools.chain.from_iterable(iter(tail.read, [])))
    while not texts:
        texts = tail.read()
    assert texts[0].endswith("end") and len(texts[0]) <= MEGABYTE


def test_a_long_line_does_not_end_a_followed_log(log):
    """What comes after a line that is longer than one look is told too."""
    run, path = log
    tail = MergedTail(run)
    tail.last(1)
    with path.open("ab") as file:
        file.write(b"z" * (9 * MEGABYTE) + b"\nafter\n")
    lines = [line for _ in range(10) for line in tail.fresh()]
    assert [line.text[-5:] for line in lines] == ["zzzzz", "after"]


def test_follow_tells_all_that_was_written_before_the_end(log, capsys, monkeypatch):
    """Also more than one look takes in, and a last line without an end: a crash's last words."""
    run, path = log
    path.write_bytes(b"")
    seen = []

    def lives_once(*arguments):
        seen.append(True)
        if len(seen) == 1:
            return jobs.Status(jobs.State.RUNNING, managed=True)
        with path.open("ab") as file:
            file.write((b"w" * 99 + b"\n") * 100_000 + b"Fatal: no memory")
        return jobs.status(run)

    monkeypatch.setattr("collie.jobs.cli._tail.status", lives_once)
    assert main(["tail", "odd", "--follow", "--rank", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[-1]) == (100_001, "Fatal: no memory")
    monkeypatch.undo()
    assert [line.text for line in MergedTail(run).last(1, whole=False)] == ["Fatal: no memory"]
    assert main(["tail", str(run.path.name), "--runs", str(run.path.parent), "-n", "1", "--rank", "0"]) == 0
    assert capsys.readouterr().out == "Fatal: no memory\n", "it has ended: nothing will be added to that line"


def test_a_week_of_noted_times_is_not_read_for_the_last_lines(log):
    """Only those of its end."""
    run, path = log
    name = str(path.relative_to(run.logs))
    size = path.stat().st_size
    with (run.logs / "times.jsonl").open("w") as file:
        file.writelines(f'[{t}, "{name}", {size - 700_000 + t}]\n' for t in range(700_001))
    began = time.perf_counter()
    (line,) = MergedTail(run).last(1)
    assert line.t == 700_000 and time.perf_counter() - began < 0.7


def test_what_is_no_file_is_not_waited_for(make_run, capsys):
    """A pipe or a device in a file's place, as somebody else's run may have: it is passed over."""
    run, other = make_run("piped", "finished"), make_run("fine")
    for path in (run.path / "job.json", run.path / "exit.json", run.event_files()[0], rank_logs(run)[0].stdout):
        path.unlink()
        os.mkfifo(path)
    (run.path / "state.json").unlink()
    (run.path / "state.json").symlink_to("/dev/zero")
    rank_logs(run)[1].stderr.unlink()
    os.mkfifo(rank_logs(run)[1].stderr)
    assert main(["ls"]) == 0 and "fine" in capsys.readouterr().out
    main(["status", run.id])
    assert main(["tail", run.id]) == 0
    assert LogTail(rank_logs(run)[1].stderr).read() == []
    assert jobs.summary(other).step == 10
