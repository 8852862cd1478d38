"""The dashboard over a real job: two ranks train, it shows them, it is closed and opened again, and it stops them."""

import asyncio
import html
import os
import pathlib
import re
import subprocess
import sys
import time

import psutil
import pytest

from collie import jobs
from collie.events import Bye, EventReader, RunFolder, Step, list_runs
from collie.tui import Dashboard

SCRIPT = pathlib.Path(__file__).parent / "scripts" / "train_long.py"

pytestmark = pytest.mark.timeout(240)


def shown(app):
    """The text on the screen, line by line, as a person sees it."""
    texts = re.findall(r'<text[^>]*y="([\d.]+)"[^>]*>(.*?)</text>', app.export_screenshot())
    lines = {}
    for height, text in texts:
        lines[height] = lines.get(height, "") + html.unescape(text).replace("\xa0", " ")
    return "\n".join(lines.values())


async def until(pilot, condition, seconds=90):
    """Let the dashboard live until the condition holds; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"it did not happen in {seconds} s; the screen:\n{shown(pilot.app)}"
        await pilot.pause(0.1)
    return value


def processes_of(run):
    """The living processes that belong to a run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("COLLIE_RUN_DIR") == str(run.path):
                found.append(process)
        except psutil.Error:
            continue
    return found


def events(run, rank):
    """The events of one rank so far."""
    return [record.event for record in EventReader(run.event_files()[rank]).read()]


@pytest.fixture
def job(tiny_moss, tmp_path, runs):
    """`collie-tui run` of a long training on two ranks, detached; ended after the test, whatever happened."""
    command = pathlib.Path(sys.executable).with_name("collie-tui")
    if not command.exists():
        pytest.skip("the command collie-tui is not installed in this environment")
    arguments = [
        "run",
        "--nproc",
        "2",
        "--name",
        "watched",
        "--detach",
        str(SCRIPT),
        str(tiny_moss),
        str(tmp_path / "out"),
    ]
    subprocess.run([str(command), *arguments], check=True, capture_output=True, timeout=90)
    (run,) = list_runs(runs)
    yield run
    for process in processes_of(run):
        process.kill()


async def watch_then_quit(run: RunFolder):
    """Open the dashboard until it shows both ranks at work, an evaluation and its text; quit; the last step seen."""
    app = Dashboard(run.path.parent)
    async with app.run_test(size=(120, 50)) as pilot:
        await until(pilot, lambda: app.snapshot.run is not None and app.snapshot.run.summary.status.state == "running")
        await until(pilot, lambda: len(app.snapshot.run.ranks) == 2)
        await until(pilot, lambda: all(rank.step is not None and rank.step > 25 for rank in app.snapshot.run.ranks))
        view = app.snapshot.run
        assert [rank.rank for rank in view.ranks] == [0, 1]
        for rank in view.ranks:
            assert rank.loss is not None and 0 <= rank.loss < 7
            assert rank.seconds > 0 and rank.tgs > 0 and rank.memory > 1 << 20
        screen = await until(pilot, lambda: "finetuning" in (text := shown(app)) and "running" in text and text)
        assert "watched" in screen and "ppl" in screen and "STEP TIME" in screen
        await pilot.press("q")
    return max(rank.step for rank in view.ranks)


async def come_back_and_stop(run: RunFolder, step: int):
    """Open another dashboard, find the job further on, stop it with the key and its answer."""
    app = Dashboard(run.path.parent)
    async with app.run_test(size=(120, 50)) as pilot:
        await until(pilot, lambda: app.snapshot.run is not None and (app.snapshot.run.summary.step or 0) > step)
        await pilot.press("s")
        await until(pilot, lambda: f"Stop {app.snapshot.run.summary.name}?" in shown(app))
        await pilot.press("escape")
        await pilot.pause()
        assert app.snapshot.run.summary.status.live, "Escape keeps it running"
        await pilot.press("s")
        await until(pilot, lambda: "Stop after this step" in shown(app))
        await pilot.press("s")
        await until(pilot, lambda: app.snapshot.run.summary.status.state == "stopped")
        await until(pilot, lambda: "stopped" in shown(app))


def test_watch_quit_come_back_stop(job, tmp_path):
    step = asyncio.run(watch_then_quit(job))
    assert jobs.status(job).state == "running", "closing the dashboard leaves the job running"
    assert len(processes_of(job)) >= 4  # supervisor, torchrun, two ranks
    asyncio.run(come_back_and_stop(job, step))
    ending = job.read_exit()
    assert ending["outcome"] == "stopped"
    last = [[event for event in events(job, rank) if isinstance(event, Step | Bye)] for rank in (0, 1)]
    assert [ended[-1].outcome for ended in last] == ["stopped", "stopped"]
    steps = [sum(isinstance(event, Step) for event in ended) for ended in last]
    assert steps[0] == steps[1] > step, "all ranks stop after the same step"
    assert int((tmp_path / "out").read_text()) == steps[0] - 1, "train() returned, and knows the last step"
    assert psutil.wait_procs(processes_of(job), timeout=20)[1] == [], "nothing of the job is left"
