"""Run folders are data of somebody else: no text in one commands a terminal, and a broken one hides no other."""

import asyncio
import json
import time

import pytest

from collie import jobs
from collie.events import Alert, Bye, Checkpoint, Eval, Sample
from collie.jobs import RunReader
from collie.jobs._failure import first_failure
from collie.jobs._json import to_json
from collie.jobs.cli import main
from collie.jobs.cli._printers import TextPrinter
from collie.jobs.cli._run import Follower
from collie.tui import Dashboard
from collie.tui._source import Query, Source

pytestmark = pytest.mark.timeout(60)
EVIL = "A\x1b]2;PWNED\x07B\x1b[31mRED\x9b2J\x9d0;C1\x9c\x07"
HUGE = 10**400


def _controls(text):
    return {character for character in text if (character < " " and character != "\n") or "\x7f" <= character <= "\x9f"}


def _evil_events():
    now = time.time()
    events = (
        Eval(f"ppl{EVIL}", {f"p{EVIL}": 1.05}, 1.0, 32),
        Sample(f"asked {EVIL}", f"wrote\n{EVIL}", f"hoped {EVIL}"),
        Checkpoint(f"/c{EVIL}", 1.0),
        Alert("warning", "odd", f"alert {EVIL}"),
        Bye("failed", f"ValueError: {EVIL}"),
    )
    return [(event, 9, now) for event in events]


@pytest.fixture
def evil(make_run):
    """A run whose every text tries to command the terminal."""
    failure = {"rank": 1, "message": EVIL, "exit_code": 1, "step": 10, "tail": [f"tail {EVIL}", "end"]}
    run = make_run("evil", "failed", extra={0: _evil_events()}, failure=failure, message=f"rank 1: {EVIL}")
    run.write_job({**run.read_job(), "script": f"train{EVIL}.py"})
    for path in run.event_files():
        path.write_text(path.read_text().replace('"asked ', '"\\ud800 '))  # half a character, as JSON can hold it
    return run


def test_no_text_of_a_run_commands_the_terminal(evil, capsys):
    """What `run` prints of events, outcome and last lines keeps its letters and loses its escapes."""
    follower = Follower(evil, TextPrinter())
    follower.follow()
    told = "".join(capsys.readouterr())
    assert "“wrote ABRED”" in told and "pplABRED at step 10: pABRED 1.050" in told and "alert ABRED" in told
    assert "tail ABRED" in told and "rank 1: ABRED" in told
    assert _controls(told) == set() and "PWNED" not in told
    assert main(["ls"]) == 0 and main(["stop", "evil"]) == 0
    assert _controls("".join(capsys.readouterr())) == set()


def test_views_hold_plain_text(evil):
    """Whoever paints a view need not think of it; a text of the model keeps its lines."""
    reader = RunReader(evil)
    reader.refresh()
    view = reader.view()
    assert view.samples[0].output == "wrote\nABRED" and view.evaluations[0].name == "pplABRED"
    assert view.alerts[0].message == "alert ABRED" and view.summary.script == "trainABRED.py"
    assert _controls(repr(view).replace("\\n", "")) == set() and "PWNED" not in repr(view)


def test_the_dashboard_paints_no_escapes(runs, evil):
    """Neither in the table nor in the panes."""

    async def scenario():
        app = Dashboard(runs, interval=0.05)
        async with app.run_test(size=(120, 40)) as pilot:
            deadline = time.monotonic() + 20
            while "wrote" not in (text := painted(app)):
                assert time.monotonic() < deadline, text
                await pilot.pause(0.02)
        return text

    text = asyncio.run(scenario())
    assert "ABRED" in text and _controls(text) == set() and "PWNED" not in text


def painted(app):
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


def test_json_escapes_what_a_terminal_would_act_on():
    """And is the same text for whoever reads it."""
    text = to_json({"a": "\x1b[31m\x9b2J\x7f\ud800"})
    assert text.isascii() and text.isprintable() and json.loads(text) == {"a": "\x1b[31m\x9b2J\x7f\ud800"}


BREAKS = [
    ("exit.json", {"first_failure": {"rank": [0], "tail": 7, "message": ["x"], "step": "ten", "exit_code": {}}}),
    ("exit.json", {"first_failure": 3, "message": 5, "t": HUGE, "exit_code": HUGE, "outcome": []}),
    ("exit.json", {"t": 1e300}),
    ("state.json", {"t": HUGE, "heartbeat": HUGE, "state": {}, "message": [1]}),
    ("job.json", {"created": HUGE}),
    ("job.json", {"created": 1e300, "nproc": HUGE, "script": ["x"]}),
    ("job.json", {"created": float("nan"), "nproc": True}),
    ("job.json", {"managed": False, "pid": -1, "start_time": 1.0, "boot_id": "", "host": 5}),
    ("job.json", {"supervisor": {"pid": 0, "start_time": HUGE, "boot_id": None, "host": None}}),
    ("job.json", {"supervisor": {"pid": float("inf"), "start_time": 1.0, "boot_id": "", "host": ""}}),
    ("job.json", {"supervisor": [1], "managed": "yes"}),
]


@pytest.mark.parametrize("outcome", ["failed", "running"])
@pytest.mark.parametrize(("file", "values"), BREAKS)
def test_a_field_of_a_wrong_kind_hides_no_run(runs, make_run, capsys, file, values, outcome):
    """Listed for people and programs, and on the dashboard, with the run beside it."""
    make_run("sound", "finished")
    run = make_run("odd", outcome, managed=values.get("managed", True) is not False)
    path = run.path / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}))
    _assert_all_are_shown(runs, run, capsys)


def _assert_all_are_shown(runs, run, capsys, word=""):
    assert main(["ls"]) == 0
    told = capsys.readouterr().out
    assert "sound" in told and "odd" in told and word in told
    assert main(["ls", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["sound"]["state"] == "finished" and set(listed) == {"sound", "odd"}
    assert word in listed["odd"]["message"]
    snapshot = Source(runs).read(Query(run.id))
    assert {entry.name for entry in snapshot.runs} == {"sound", "odd"} and snapshot.problem == ""
    assert snapshot.run is not None and word in snapshot.run.summary.status.message


def _log_folder_is_a_file(run):
    (run.logs / "x").mkdir()
    (run.logs / "x" / "attempt_9").write_text("no folder")


def _event_file_is_a_folder(run):
    path = run.event_files()[0]
    path.unlink()
    path.mkdir()


def _numbers_beyond_counting(run):
    for path in run.event_files():
        text = (
            path.read_text().replace('"tokens":100', f'"tokens":{HUGE}').replace('"pid":', '"pid":-').replace("--", "-")
        )
        path.write_text(text)


def _odd_losses(run):
    for path in run.event_files():
        path.write_text(path.read_text().replace('"loss":4.0', '"loss":-1e308').replace('"loss":2.0', '"loss":1e308'))


@pytest.mark.parametrize("managed", [True, False])
@pytest.mark.parametrize(
    "damage", [_log_folder_is_a_file, _event_file_is_a_folder, _numbers_beyond_counting, _odd_losses]
)
def test_a_broken_file_hides_no_run(runs, make_run, capsys, damage, managed):
    """Nor does a folder in a file's place."""
    make_run("sound", "finished")
    run = make_run("odd", "running", managed=managed)
    damage(run)
    _assert_all_are_shown(runs, run, capsys)


def test_whatever_else_is_wrong_becomes_a_row(runs, make_run, capsys, monkeypatch):
    """A mistake of ours in one run is told in its row, and the others are shown."""
    make_run("sound", "finished")
    run = make_run("odd", "running")
    job = type(run).read_job

    def read_job(self):
        if self.id == run.id:
            raise TypeError("no such thing")
        return job(self)

    monkeypatch.setattr(type(run), "read_job", read_job)
    _assert_all_are_shown(runs, run, capsys, "unreadable: TypeError: no such thing")
    assert jobs.ls()[1].state_word == "unreadable" or jobs.ls()[0].state_word == "unreadable"


def test_an_error_file_of_another_kind_does_not_cost_the_outcome(make_run):
    """The supervisor reads it while it records how a run ended."""
    run = make_run("run", "failed")
    (jobs.rank_logs(run)[1].folder / "error.json").write_text(
        '{"message": {"message": "ValueError: x", "extraInfo": [1]}}'
    )
    failure = first_failure(run, jobs.Peeker().ranks(run), 1)
    assert (failure.rank, failure.message) == (1, "ValueError: x")
