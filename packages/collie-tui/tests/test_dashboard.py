"""The dashboard under Textual's pilot: what a person sees, on run folders and on a living job."""

import threading
import time
from pathlib import Path

import pytest
from dashboard import SIZES, screen, watch

from collie import jobs
from collie.events import Alert, Checkpoint, Eval, Sample
from collie.jobs import Means, Point, State
from collie.jobs._order import StopOrder
from collie.tui import Dashboard
from collie.tui._braille import draw, spans
from collie.tui._source import Query, Source
from collie.tui._widgets import EvaluationPane, LogPane, RankTable, RunPanel, RunTable

pytestmark = pytest.mark.timeout(90)


def _evaluated(step=9):
    now = time.time()
    text = Sample("Collie is a python package for", " finetuning large language models.")
    return [(Eval("ppl", {"ppl": 1.05}, 1.0, 32), step, now), (text, step, now), (Checkpoint("/c", 1.0), 5, now - 60)]


@pytest.fixture
def four(make_run):
    """A run of each kind that a newcomer meets."""
    failure = {"rank": 1, "message": "ValueError: nan", "exit_code": 1, "step": 10, "tail": ["ValueError: nan"]}
    make_run("done", "finished")
    make_run("broken", "failed", failure=failure, message="rank 1 after step 10: ValueError: nan")
    make_run("halted", "stopped", message="stopped after step 10, as asked")
    make_run("live", "running", steps=10, total=40, extra={0: _evaluated()})


@pytest.mark.parametrize("size", SIZES)
def test_the_first_screen_says_what_matters(runs, four, size):
    """Without scrolling and without a key: all runs in words, and of the live one the numbers, the curve, the text."""

    async def scenario(pilot, see):
        await see("● running", "✓ finished", "✗ failed", "■ stopped", "10/40", "finetuning large")
        text = screen(pilot.app)
        assert "4 runs · 1 live · 1 failed" in text
        assert "loss 0.4000  lr 0.0010  grad 0.5000  400 tok/s  eta 30s" in text
        assert "2/2 ranks" in text and "memory 1.00 GiB (r0)" in text and "checkpoint step 6, 1m ago" in text
        assert "ppl 1.050  step 10 · 32 rows" in text
        assert any("\u2801" <= character <= "\u28ff" for character in text)
        assert max(map(len, text.splitlines())) <= size[0]
        if size != (80, 24):
            assert "second line of rank 0" in text and "STEP TIME" in text

    watch(runs, scenario, size)


def test_the_first_run_is_the_live_one(runs, four):
    """Live runs stand above ended ones, and the cursor is on the first."""

    async def scenario(pilot, see):
        await see("10/40")
        assert [row.cells[0][0] for row in pilot.app.screen.query_one(RunTable).rows] == [
            "live",
            "halted",
            "broken",
            "done",
        ]
        assert pilot.app.snapshot.run.summary.name == "live"

    watch(runs, scenario)


def test_a_failure_is_told_first_with_its_rank_and_log(runs, four):
    """One sentence, and the log that opens is the stderr of the rank that failed."""

    async def scenario(pilot, see):
        await see("10/40")
        await pilot.press("down", "down")
        await see("▌broken", "✗ rank 1 after step 10: ValueError: nan")
        await pilot.press("3")
        await see("log · rank 1 · stderr", "warning from rank 1")

    watch(runs, scenario)


def test_ranks_and_logs_are_switched(runs, four):
    """By brackets, by the cursor in the table of ranks, and between the two outputs."""

    async def scenario(pilot, see):
        await see("10/40")
        await pilot.press("3")
        await see("log · rank 0 · stdout", "second line of rank 0")
        await pilot.press("right_square_bracket")
        await see("log · rank 1 · stdout", "second line of rank 1")
        await pilot.press("e")
        await see("log · rank 1 · stderr", "warning from rank 1")
        await pilot.press("right_square_bracket")
        await see("log · rank 0 · stderr")
        await pilot.press("2")
        await see("STEP TIME")
        await pilot.press("down")
        await see("STEP TIME")
        await pilot.press("3")
        await see("log · rank 1 · stderr")

    watch(runs, scenario)


def test_a_run_opens_on_the_whole_screen(runs, four):
    """Enter opens, Esc goes back, and the keys of the run work in both."""

    async def scenario(pilot, see):
        await see("10/40")
        await pilot.press("enter")
        await see("esc back")
        assert "halted" not in screen(pilot.app) and "finetuning large language models." in screen(pilot.app)
        await pilot.press("2")
        await see("STEP TIME")
        await pilot.press("escape")
        await see("halted", "⏎ open")

    watch(runs, scenario)


def test_help_explains_keys_and_states(runs, four):
    """And closes again."""

    async def scenario(pilot, see):
        await see("10/40")
        await pilot.press("question_mark")
        await see("it was stopped, which is no failure", "leave; jobs go on", "nobody answers for it")
        await pilot.press("escape")
        await see("10/40")
        assert "leave; jobs go on" not in screen(pilot.app)

    watch(runs, scenario)


def test_no_runs_yet_shows_three_commands(runs, make_run):
    """And a run that is made later appears by itself."""

    async def scenario(pilot, see):
        await see(
            "No runs yet", "collie-tui run train.py", "torchrun --standalone --nproc_per_node 2 train.py", "q quit"
        )
        keys = screen(pilot.app).splitlines()[-1]
        assert not any(word in keys for word in ("open", "stop", "views", "rank", "stdout"))  # nothing to do there
        make_run("newborn", "running")
        await see("newborn", "● running", "open", "s stop", "e out/err")
        assert "No runs yet" not in screen(pilot.app)

    watch(runs, scenario)


def test_the_newest_alert_stands_above_the_numbers(runs, make_run):
    """Of all ranks, with its age; older ones give way to it."""
    now = time.time()
    old = [(Alert("warning", "a", "old news"), 3, now - 90)]
    new = [(Alert("error", "b", "the loss is nan"), 9, now - 60)]
    make_run("live", "running", extra={0: old, 1: new})

    async def scenario(pilot, see):
        await see("▲ error, rank 1 at step 10, 1m ago: the loss is nan")
        assert "old news" not in screen(pilot.app)

    watch(runs, scenario)


def test_a_log_that_begins_late_says_so(runs, make_run):
    """And where the whole of it is."""
    run = make_run("talks", "running", ranks=1)
    log = jobs.rank_logs(run)[0].stdout
    log.write_text("".join(f"line {number}\n" for number in range(6000)))
    short = jobs.rank_logs(run)[0].stderr

    async def scenario(pilot, see):
        await see("10/10")
        await pilot.press("3")
        await see("line 5999")
        await pilot.press("home")
        await see("… earlier lines in /", "line 1000")
        assert pilot.app.screen.query_one(LogPane)._lines[0] == f"… earlier lines in {log}"
        await pilot.press("e")
        await see(short.read_text().strip())
        assert "earlier lines" not in screen(pilot.app)

    watch(runs, scenario)


def test_a_run_with_nothing_but_a_log_opens_on_it(runs, make_run):
    """So does a failed one, with its reason above, where one view has room; a view that was asked for stays."""
    make_run("silent", "finished", ranks=1, steps=0)
    for path in jobs.find("silent").event_files():
        path.unlink()
    failure = {"rank": 1, "message": "ValueError: nan", "exit_code": 1, "step": 10, "tail": []}
    make_run("broken", "failed", failure=failure, message="rank 1 after step 10: ValueError: nan")
    make_run("live", "running")

    async def scenario(pilot, see):
        await see("● running", "loss 0.4000")
        assert not pilot.app.screen.query_one(LogPane).display
        await pilot.press("down")
        await see("▌broken", "✗ rank 1 after step 10: ValueError: nan", "log · rank 1 · stderr", "warning from rank 1")
        await pilot.press("down")
        await see("▌silent", "second line of rank 0")
        await pilot.press("1")
        await see("no loss", "no evaluation")
        assert "yet" not in screen(pilot.app)
        await pilot.press("up")
        await see("▌broken", "loss 0.4000")

    watch(runs, scenario)


def test_lost_is_not_failed(runs, make_run):
    """The banner counts them apart, and epochs are counted from 1, as steps are."""
    for name in ("one", "two"):
        run = make_run(name, "lost", heartbeat=time.time() - 100)
        run.write_job({**run.read_job(), "supervisor": {"pid": 1, "start_time": 1.0, "boot_id": "", "host": "x"}})
        run.write_state({**run.read_state(), "t": 1.0, "heartbeat": 1.0})

    async def scenario(pilot, see):
        await see("2 runs · 2 lost", "epoch 1")
        assert "failed" not in screen(pilot.app)

    watch(runs, scenario)


def test_every_state_has_its_word(runs, make_run):
    """Also those of runs without a supervisor, and of one whose supervisor is gone."""
    for state in ("starting", "running", "stopping", "stopped", "finished", "failed"):
        make_run(state, state)
    make_run("plain", "running", managed=False)
    gone = make_run("gone", "lost", heartbeat=time.time() - 100)
    job = gone.read_job()
    gone.write_job({**job, "supervisor": {**job["supervisor"], "start_time": 1.0}})

    async def scenario(pilot, see):
        words = (
            "◐ starting",
            "● running",
            "◑ stopping",
            "■ stopped",
            "✓ finished",
            "✗ failed",
            "◌ unmanaged",
            "? lost",
        )
        await see(*words)

    watch(runs, scenario, (120, 40))


def test_a_stop_asks_first_and_says_what_it_costs(runs, four):
    """Esc and Enter keep the job running; `s` writes the order."""

    async def scenario(pilot, see):
        await see("10/40")
        run = jobs.find("live")
        await pilot.press("s")
        await see("Stop live?", "It is at step 10 of 40.", "checkpoint is of step 6: 4 steps")
        await pilot.press("enter")
        await pilot.pause(0.1)
        assert "Stop live?" not in screen(pilot.app) and StopOrder.read(run) is None
        await pilot.press("s")
        await see("Stop live?")
        await pilot.press("escape", "s")
        await see("Stop live?")
        await pilot.press("s")
        await see("live was asked to stop")
        assert StopOrder.read(run).means is Means.STEP

    watch(runs, scenario, (120, 40))


def test_a_stop_under_way_can_be_hurried(runs, make_run):
    """The question then offers what has not been done yet."""
    run = make_run("slow", "stopping")

    async def scenario(pilot, see):
        await see("◑ stopping")
        await pilot.press("s")
        await see("End it now (t)", "Kill (k)")
        assert "after this step (s)" not in screen(pilot.app)
        await pilot.press("k")
        await see("slow is being killed.")
        assert StopOrder.read(run).means is Means.KILL

    watch(runs, scenario, (120, 40))


def test_the_first_reading_has_the_first_run_in_full(runs, four):
    """A key pressed as soon as a run is seen finds it selected, also when the run selected before is gone."""
    for query in (Query(), Query("gone")):
        snapshot = Source(runs).read(query)
        assert snapshot.run is not None and snapshot.run.summary == snapshot.runs[0]
        assert snapshot.log is not None and snapshot.log.run == snapshot.runs[0].id == jobs.find("live").id


def test_an_ended_run_cannot_be_stopped(runs, make_run):
    """It is said instead of asked."""
    make_run("done", "finished")

    async def scenario(pilot, see):
        await see("✓ finished")
        await pilot.press("s")
        await see("done has ended already")

    watch(runs, scenario)


def test_a_living_job_is_watched_left_found_and_stopped(runs, launch):
    """Two real ranks: steps come in, quitting leaves them running, opening again finds them, `s` `s` ends them."""
    run = launch("--steps", "100000", "--seconds", "0.02", name="alive")

    def step():
        return jobs.summary(run).step

    async def first(pilot, see):
        await see("alive", "● running", "/100000", "2/2 ranks")
        before = pilot.app.snapshot.run.summary.step
        while pilot.app.snapshot.run.summary.step < before + 10:
            await pilot.pause(0.02)
        await pilot.press("q")

    app = watch(runs, first)
    assert [summary.name for summary in app.snapshot.runs if summary.status.live] == ["alive"]
    assert jobs.status(run).state is State.RUNNING
    left_at = step()

    async def second(pilot, see):
        await see("alive", "● running")
        assert pilot.app.snapshot.run.summary.step > left_at
        await pilot.press("s")
        await see("Stop alive?", "This run has no checkpoint")
        await pilot.press("s")
        await see("■ stopped", "stopped after step")

    watch(runs, second)
    assert jobs.status(run).state is State.STOPPED


def test_quitting_says_which_jobs_go_on(runs, four, monkeypatch, capsys):
    """On the terminal, after the dashboard is gone."""
    from collie.tui import main

    def run(self):
        self.snapshot = Source(runs).read(Query())

    monkeypatch.setattr(Dashboard, "run", run)
    assert main(runs) == 0
    told = capsys.readouterr().out
    assert "1 job goes on:" in told and "live  running, step 10/40   stop it: collie-tui stop live" in told


def test_a_log_follows_its_end_until_somebody_scrolls_up(runs, make_run):
    """New lines come into sight at the end; away from it they are counted, and End goes back."""
    run = make_run("talks", "running", ranks=1)
    log = jobs.rank_logs(run)[0].stdout
    log.write_text("".join(f"line {number}\n" for number in range(300)))

    def append(*lines):
        with log.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    async def scenario(pilot, see):
        await see("10/10")
        await pilot.press("3")
        await see("line 299")
        append("line 300")
        await see("line 300")
        await pilot.press("pageup")
        await see("line 270")
        append("line 301", "line 302")
        await see("↓ 2 new")
        assert "line 302" not in screen(pilot.app)
        await pilot.press("end")
        await see("line 302")
        assert "2 new" not in screen(pilot.app)
        with log.open("a") as file:
            file.write(" 10%|#   \r 50%|##  ")
        await see("50%|##")

    watch(runs, scenario)


def test_files_are_read_off_the_event_loop_and_only_news_is_painted(runs, four, monkeypatch):
    """A slow disk cannot freeze the screen, and an unchanged run repaints nothing but ages."""
    threads, fresh = set(), []
    read = Source.read
    monkeypatch.setattr(Source, "read", lambda self, query: threads.add(threading.get_ident()) or read(self, query))
    take = Dashboard.on_dashboard_fresh
    monkeypatch.setattr(
        Dashboard, "on_dashboard_fresh", lambda self, message: fresh.append(message) or take(self, message)
    )

    async def scenario(pilot, see):
        await see("10/40", "finetuning large language models.")
        for _ in range(3):  # what it reads first comes in one piece or more
            seen = len(fresh)
            await pilot.pause(0.5)  # ten looks
            if len(fresh) == seen:
                break
        assert len(fresh) == seen <= 3
        assert threads and threading.get_ident() not in threads

    watch(runs, scenario)


def test_a_broken_run_folder_does_not_end_the_dashboard(runs, four):
    """Whatever stands in the files, the rest is shown."""
    odd = jobs.find("done")
    odd.write_exit({"outcome": "exploded", "t": "yesterday"})
    (odd.path / "job.json").write_text("[1]")
    odd.event_files()[0].write_bytes(b"\xff\xfe{]\n" * 10)
    (runs / "not-a-run").mkdir()

    async def scenario(pilot, see):
        await see("live", "halted", "broken", "done")

    watch(runs, scenario)


def test_a_thousand_ranks_open(runs, make_run):
    """Only visible rows are painted; the last rank is one key away."""
    make_run("wide", "running", ranks=1024, steps=2)

    async def scenario(pilot, see):
        await see("1024/1024 ranks", seconds=40)
        await pilot.press("2")
        await see("STEP TIME")
        await pilot.press("end")
        await see(" 1023 ")

    watch(runs, scenario)


def test_resizing_changes_the_layout(runs, four):
    """A small panel shows one view, a large one all."""

    async def scenario(pilot, see):
        await see("10/40")
        panel = pilot.app.screen.query_one(RunPanel)
        assert panel.has_class("-compact") and not panel.query_one(LogPane).display
        await pilot.resize_terminal(130, 45)
        await see("second line of rank 0", "STEP TIME")
        shown = (LogPane, RankTable, EvaluationPane)
        assert not panel.has_class("-compact") and all(panel.query_one(part).display for part in shown)
        await pilot.resize_terminal(60, 15)
        await see("● running", "q quit")

    watch(runs, scenario)


def _dots(line):
    """Set (column, row from the top) of a braille picture."""
    bits = {0: (0, 0), 1: (0, 1), 2: (0, 2), 6: (0, 3), 3: (1, 0), 4: (1, 1), 5: (1, 2), 7: (1, 3)}
    found = set()
    for row, cells in enumerate(line):
        for column, cell in enumerate(cells):
            for bit, (x, y) in bits.items():
                if ord(cell) - 0x2800 >> bit & 1:
                    found.add((2 * column + x, 4 * row + y))
    return found


def test_a_curve_has_no_holes_and_the_right_ends():
    """From the top left to the bottom right in one piece, each column drawn, steep falls included."""
    points = [Point(x, x, y, y, y) for x, y in ((0, 9.0), (10, 8.0), (11, 1.0), (40, 0.0))]
    dots = _dots(draw(points, *spans(points), width=20, height=5).line)
    assert {x for x, _ in dots} == set(range(40))
    assert (0, 0) in dots and (39, 19) in dots
    reached, front = set(), {(0, 0)}
    while front:
        reached |= front
        front = {(x + i, y + j) for x, y in front for i in (-1, 0, 1) for j in (-1, 0, 1)} & dots - reached
    assert reached == dots


def test_a_band_shows_the_extremes_of_a_column():
    """A spike among many values of one column is not averaged away."""
    points = [Point(x, x, 0.0, 0.0, 0.0) for x in range(100)] + [Point(50, 50, 10.0, 10.0, 10.0)]
    picture = draw(points, *spans(points), width=10, height=4)
    assert min(y for _, y in _dots(picture.band)) == 0
    assert min(y for _, y in _dots(picture.line)) > 8


def test_a_flat_curve_is_drawn_in_the_middle():
    """One value has no range of its own."""
    points = [Point(1, 1, 2.0, 2.0, 2.0)]
    assert len(_dots(draw(points, *spans(points), width=4, height=4).line)) == 1


def test_the_source_reads_an_ended_run_once(runs, four, monkeypatch):
    """A history of a thousand runs costs a stat each."""
    source = Source(Path(runs))
    first = source.read(Query())
    looked = []
    from collie.jobs import summary

    monkeypatch.setattr("collie.tui._source.summary", lambda run, peeker: looked.append(run.id) or summary(run, peeker))
    assert source.read(Query()) == first
    assert [jobs.display_name(name) for name in looked] == ["live"]


def test_an_ended_run_without_a_supervisor_is_read_once_too(runs, make_run, monkeypatch):
    """It has no exit file: until its events grow, it stays as it was."""
    run = make_run("plain", "finished", managed=False)
    source = Source(Path(runs))
    source.read(Query())
    looked = []
    from collie.jobs import summary

    monkeypatch.setattr("collie.tui._source.summary", lambda run, peeker: looked.append(run.id) or summary(run, peeker))
    source.read(Query())
    assert looked == []
    with run.event_files()[0].open("a") as file:
        file.write("\n")
    source.read(Query())
    assert looked == [run.id]
