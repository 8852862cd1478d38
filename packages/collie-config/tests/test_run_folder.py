"""The run folder: private, replaced in one act, and open only to requests."""

import json
import os
import re
import stat
from pathlib import Path

import pytest

from collie.events import RunFolder, current_attempt, current_run, list_runs, runs_root
from collie.interfaces import ConfigError


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "runs", name="demo")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("demo", "demo"),
        ("sft qwen/3 ../x", "sft-qwen-3-..-x"),
        ("../..", "run"),
        ("", "run"),
        ("微调", "run"),
        ("a" * 99, "a" * 40),
    ],
)
def test_the_id_is_date_time_name_and_chance(tmp_path, name, label):
    run = RunFolder.create(tmp_path, name=name)
    assert re.fullmatch(r"\d{8}-\d{6}-" + re.escape(label) + r"-[0-9a-f]{4}", run.id)
    assert run.path.parent == tmp_path


def test_everything_in_it_is_the_users_alone(run, monkeypatch):
    old = os.umask(0)  # the most generous one must not matter
    try:
        other = RunFolder.create(run.path.parent, name="open")
        other.write_job({"a": 1})
        other.request("stop")
    finally:
        os.umask(old)
    for made in (run, other):
        assert [mode(p) for p in (made.path, made.events, made.logs, made.control)] == [0o700] * 4
    assert mode(other.path / "job.json") == 0o600
    assert [mode(p) for p in other.control.iterdir()] == [0o600]


def test_the_root_is_made_private(tmp_path):
    RunFolder.create(tmp_path / "a" / "runs")
    assert mode(tmp_path / "a" / "runs") == 0o700


def test_a_group_may_read_but_never_control(tmp_path):
    run = RunFolder.create(tmp_path, group_readable=True)
    run.write_state({"state": "running"})
    run.request("stop")
    assert [mode(p) for p in (run.path, run.events, run.logs)] == [0o750] * 3
    assert mode(run.control) == 0o700
    assert mode(run.path / "state.json") == 0o640
    assert [mode(p) for p in run.control.iterdir()] == [0o600]


@pytest.mark.parametrize("what", ["job", "state", "exit"])
def test_a_file_is_replaced_whole(run, what):
    read, write = getattr(run, f"read_{what}"), getattr(run, f"write_{what}")
    assert read() is None
    write({"state": "starting", "名": "值"})
    write({"state": "running"})
    assert read() == {"state": "running"}
    assert sorted(p.name for p in run.path.iterdir()) == sorted(["control", "events", f"{what}.json", "logs"])


def test_a_failed_write_leaves_the_old_file(run):
    run.write_state({"state": "running"})
    with pytest.raises(TypeError):
        run.write_state({"state": object()})
    assert run.read_state() == {"state": "running"}
    assert {p.name for p in run.path.iterdir()} == {"control", "events", "logs", "state.json"}


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000])
def test_an_unreadable_file_is_none(run, text):
    (run.path / "state.json").write_text(text, encoding="latin-1")
    assert run.read_state() is None


def test_event_files_are_sorted_by_number(run):
    names = ["rank-00002.a0.jsonl", "rank-00000.a10.jsonl", "rank-00000.a9.jsonl", "rank-100000.a0.jsonl"]
    for name in [*names, "notes.txt", "rank-x.a0.jsonl"]:
        (run.events / name).touch()
    assert [p.name for p in run.event_files()] == [names[2], names[1], names[0], names[3]]


def test_requests_come_back_in_the_order_in_which_they_were_made(run):
    ids = [
        run.request("checkpoint"),
        run.request("prompt", text="Hi", max_new_tokens=5),
        run.request("stop", reason="x"),
    ]
    found = run.pending()
    assert [request.id for request in found] == ids
    assert [(request.kind, request.arguments) for request in found] == [
        ("checkpoint", {}),
        ("prompt", {"text": "Hi", "max_new_tokens": 5}),
        ("stop", {"reason": "x"}),
    ]
    run.resolve(ids[1])
    run.resolve(ids[1])
    assert [request.kind for request in run.pending()] == ["checkpoint", "stop"]


def test_an_unknown_request_is_refused(run):
    with pytest.raises(ConfigError, match=r"request='stopp' is not one of .* Use 'stop'"):
        run.request("stopp")
    assert run.pending() == []


def test_files_that_are_no_requests_are_left_alone(run):
    valid = run.request("stop")
    stem = "0" * 20 + "-00000000"
    (run.control / f"{stem}.json").write_text('{"kind": "erase", "t": 1, "arguments": {}}')
    (run.control / f".{stem}.json.1234").write_text("half")
    (run.control / "README.json").write_text('{"kind": "stop", "t": 1, "arguments": {}}')
    (run.control / f"{'1' * 20}-00000000.json").write_text('{"kind": "stop", "t": "now", "arguments": {}}')
    too_large, link, pipe = (run.control / f"{digit * 20}-00000000.json" for digit in "234")
    too_large.write_text(json.dumps({"kind": "prompt", "t": 1, "arguments": {"text": "a" * 2**20}}))
    link.symlink_to(run.control / f"{valid}.json")
    os.mkfifo(pipe)  # which nobody writes to: reading it must not wait
    assert [request.id for request in run.pending()] == [valid]
    assert len(list(run.control.iterdir())) == 8
    with pytest.raises(ConfigError, match="is too large: 1,048,576 at most"):
        run.request("prompt", text="a" * 2**20)


def test_resolving_cannot_reach_outside(run):
    run.write_job({"a": 1})
    run.resolve("../job")
    assert run.read_job() == {"a": 1}


def test_a_request_is_plain_json(run):
    request_id = run.request("evaluate", evaluator="ppl")
    values = json.loads((run.control / f"{request_id}.json").read_text())
    assert values["kind"] == "evaluate" and values["arguments"] == {"evaluator": "ppl"} and values["t"] > 1.7e9


def test_runs_are_listed_newest_first(tmp_path):
    for name in ["20240101-000000-b-0000", "20260101-000000-a-0000", "20250101-000000-c-0000"]:
        (tmp_path / name / "events").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    assert [run.id[:4] for run in list_runs(tmp_path)] == ["2026", "2025", "2024"]
    assert list_runs(tmp_path / "nowhere") == []


def test_the_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "mine"))
    assert runs_root() == tmp_path / "mine"
    assert RunFolder.create().path.parent == tmp_path / "mine"
    monkeypatch.delenv("COLLIE_RUNS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runs_root() == tmp_path / ".local/share/collie/runs"


def test_a_rank_finds_its_run_and_attempt(monkeypatch, run):
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert current_run() is None and current_attempt() == 0
    monkeypatch.setenv("COLLIE_RUN_DIR", str(run.path))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert current_run() == run and current_attempt() == 2


def test_a_string_will_do_as_a_path(run):
    assert RunFolder(str(run.path)) == run


@pytest.mark.parametrize("when", ["1" + "0" * 400, "NaN", "Infinity", "true", '"now"', "null"])
def test_a_request_of_no_time_is_none(tmp_path, when):
    """JSON has whole numbers that no float holds: reading one must not end whoever looks for requests."""
    run = RunFolder(tmp_path)
    run.control.mkdir()
    text = f'{{"kind": "stop", "t": {when}, "arguments": {{}}}}'
    (run.control / "00000000000000000001-00000001.json").write_text(text)
    assert run.pending() == []
