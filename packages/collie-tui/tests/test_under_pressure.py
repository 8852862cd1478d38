"""Supervisors and askers where things are slow, full or many."""

import subprocess
import sys
import threading
import time

import psutil
import pytest
from run_files import write_events

from collie import jobs
from collie.events import Eval, Log, Step
from collie.jobs._answers import NoAnswer, ask
from collie.jobs._children import Found
from collie.jobs._notify import Notifier
from collie.jobs._process import Identity

pytestmark = pytest.mark.timeout(60)


def _step(step):
    return (Step(1.0, 1e-3, 1, 0.01), step, time.time())


def test_an_evaluation_that_takes_long_is_waited_for(make_run):
    """Many short steps were made between the question and its hearing, as a Trainer polls twice a second."""
    run = make_run("slow", "running", ranks=1)
    asked = ask(run, "evaluate")
    answers = []
    thread = threading.Thread(target=lambda: answers.extend(asked.wait(20)))
    thread.start()
    write_events(run, 0, [(Eval("regular", {"x": 1.0}, 0.1, 8), 10, time.time()), *map(_step, range(11, 40))])
    run.resolve(asked.id)
    heard = Log("info", f"asked to evaluate (request {asked.id})")
    write_events(run, 0, [(heard, None, time.time()), _step(40)])
    time.sleep(0.5)  # it evaluates
    assert thread.is_alive()
    write_events(run, 0, [(Eval("ppl", {"ppl": 2.0}, 9.0, 8), 40, time.time()), _step(41)])
    thread.join(10)
    assert [record.event.name for record in answers] == ["ppl"]
    asked = ask(run, "evaluate")
    run.resolve(asked.id)
    write_events(run, 0, [(Log("info", f"asked to evaluate (request {asked.id})"), None, time.time())])
    write_events(run, 0, map(_step, range(42, 46)))
    with pytest.raises(NoAnswer, match="no evaluators"):
        asked.wait(10)


def test_a_command_that_reads_nothing_holds_nothing_up(tmp_path, monkeypatch):
    """Neither with a message larger than a pipe, nor at the end; what it started is ended with it."""
    monkeypatch.setattr("collie.jobs._notify._LIMIT", 0.5)
    notifier = Notifier(f"echo x >> {tmp_path}/told; sleep 600", tmp_path / "log")
    began = time.monotonic()
    notifier.tell(message="m" * 2**20)
    notifier.tell(message="the end")
    assert time.monotonic() - began < 0.5
    notifier.settle()
    assert time.monotonic() - began < 3 and (tmp_path / "told").read_text() == "x\nx\n"
    assert not [child for child in psutil.Process().children(recursive=True) if "600" in child.cmdline()]


def test_a_stop_on_a_full_disk_goes_on_to_term(launch, until, tmp_path):
    """The ranks' request cannot be written: they are not waited for as if they had heard it."""
    run = launch("--steps", "100000", "--deaf")
    until(lambda: (jobs.summary(run).step or 0) > 1)
    run.control.rmdir()
    run.control.write_text("in the way")  # as full as a folder can be for root, too
    jobs.stop(run)
    assert jobs.wait(run, 15).message.startswith("ended with TERM")


def test_looking_after_found_processes_costs_little(monkeypatch):
    """One walk through the host's processes a second, however many ranks there are; their children are known, too."""
    command = [sys.executable, "-c", "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"]
    ranks = [subprocess.Popen(command) for _ in range(3)]
    walks, walk = [], psutil.process_iter
    try:
        deadline = time.monotonic() + 20
        while len(children := psutil.Process().children(recursive=True)) < 6:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        monkeypatch.setattr(psutil, "process_iter", lambda *a: walks.append(1) or walk(*a))
        found = Found(None, [Identity.of(one.pid) for one in ranks])
        for _ in range(5):
            assert sorted(found.left()) == sorted(child.pid for child in children)
        assert len(walks) == 1
        ranks[0].kill()
        ranks[0].wait()
        assert len(found.left()) == 5, "its orphan is still known"
    finally:
        for process in psutil.Process().children(recursive=True) + [psutil.Process(pid) for pid in found.left()]:
            process.kill()
