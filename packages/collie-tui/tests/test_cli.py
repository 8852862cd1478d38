"""The command, as a process: what it prints and the status it ends with."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from collie import jobs
from collie.events import Eval
from collie.jobs import State
from collie.jobs.cli._printers import TextPrinter
from collie.jobs.cli._run import Follower

pytestmark = pytest.mark.timeout(60)
COMMAND = [sys.executable, "-c", "import sys; from collie.jobs.cli import main; sys.exit(main())"]
ENDLESS = ("--steps", "100000", "--seconds", "0.02")


@pytest.fixture
def tui(launch):
    """tui(*arguments): the ended command; jobs that it left are killed after the test."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [*COMMAND, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=40, stdin=subprocess.DEVNULL)

    return run


def test_run_follows_to_the_end(tui, python, worker):
    """Rank 0's output as it is, first and last step, the evaluation, the decoded text, and 0."""
    ended = tui("run", "--nproc", 2, "--python", python, "--name", "tutorial", worker, "--steps", 20)
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert "decoded: finetuning large language models." in lines
    assert lines[0].startswith("» tutorial: ") and "on 2 ranks" in lines[0]
    assert any(line.startswith("» step 1/20  loss 3.000  lr 0.0010") for line in lines)
    assert any(line.startswith("» step 20/20  loss 0.1500") for line in lines)
    assert any(line.startswith("» ppl at step 20: ppl 1.050") for line in lines)
    assert "» text at step 20: “Collie is a python package for” → “finetuning large language models.”" in lines
    assert lines[-1] == "» tutorial finished: 20 steps"


def test_run_tells_the_first_failure(tui, python, worker):
    """One sentence about the rank that failed, its last lines, and 1."""
    ended = tui("run", "--nproc", 2, "--python", python, worker, "--steps", 500, "--fail-at", 2)
    assert ended.returncode == 1
    reason = "ValueError: the loss is nan at lr=0.1; use a smaller lr"
    assert ended.stdout.splitlines()[-1] == f"» worker failed: rank 1 after step 2: {reason}"
    assert "the last lines of rank 1:\n  Traceback" in ended.stderr and f"  {reason}" in ended.stderr


def test_run_json_is_json_on_every_line(tui, python, worker):
    """What a program needs: the run's id first, its end last."""
    ended = tui("run", "--json", "--nproc", 1, "--python", python, worker, "--steps", 3)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines[0]["kind"] == "run" and Path(lines[0]["path"]).is_dir()
    assert lines[-1] == {
        "kind": "end",
        "state": "finished",
        "message": "3 steps",
        "exit_code": 0,
        "first_failure": None,
    }
    steps = [line for line in lines if line["kind"] == "step"]
    assert steps[0]["step"] == 1 and steps[-1]["step"] == 3 and steps[-1]["loss"] == 1.0
    assert {
        "kind": "output",
        "rank": 0,
        "stream": "stdout",
        "line": "decoded: finetuning large language models.",
    } in lines


def test_options_after_the_script_are_the_scripts(tui, python, tmp_path):
    """Even those that collie-tui has as well."""
    script = tmp_path / "echo.py"
    script.write_text("import sys; print(sys.argv[1:])")
    ended = tui("run", "--nproc", 1, "--python", python, script, "--json", "--name", "x", "-h", "a b")
    assert ended.returncode == 0
    assert "['--json', '--name', 'x', '-h', 'a b']" in ended.stdout.splitlines()


def test_detach_ls_and_stop(tui, python, worker, until):
    """A job that is left alone is listed, found by name, and stopped."""
    started = tui("run", "--detach", "--json", "--nproc", 2, "--python", python, "--name", "night", worker, *ENDLESS)
    assert started.returncode == 0
    run = json.loads(started.stdout.splitlines()[0])
    until(lambda: jobs.ls() and jobs.ls()[0].step)
    (listed,) = json.loads(tui("ls", "--json").stdout)
    assert (listed["id"], listed["name"], listed["managed"], listed["nproc"]) == (run["id"], "night", True, 2)
    assert listed["state"] in ("starting", "running") and listed["total"] == 100000 and listed["tokens_per_second"] > 0
    assert "night" in tui("ls").stdout
    stopped = tui("stop", "night", "--json")
    assert stopped.returncode == 0
    assert json.loads(stopped.stdout)["state"] == "stopped"
    again = tui("stop", run["id"][:18])
    assert again.returncode == 0 and again.stdout == f"{run['id']} is stopped already.\n"


def follow(command, env=None):
    """Start it as a terminal does: heeding Ctrl+C, which what a shell has put into the background is born deaf to."""

    def heed():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=heed
    )


def test_ctrl_c_leaves_the_job_running(launch, python, worker, until):
    """It says so, and how to come back and how to stop."""
    command = [*COMMAND, "run", "--nproc", "2", "--python", str(python), "--name", "kept", str(worker), *ENDLESS]
    follower = follow(command)
    until(lambda: follower.stdout.readline().startswith("» step 1/"))
    follower.send_signal(signal.SIGINT)
    _, told = follower.communicate(timeout=20)
    assert follower.returncode == 130
    run = jobs.find("kept")
    assert f"collie-tui stop {run.id}" in told and "goes on without this terminal" in told
    step = jobs.summary(run).step
    until(lambda: jobs.summary(run).step > step + 5)
    jobs.stop(run)
    assert jobs.wait(run, 20).state is State.STOPPED


def test_ctrl_c_while_the_job_is_starting_ends_it(launch, python, worker, until, slow_start):
    """And says so: no job is left behind in silence."""
    command = [*COMMAND, "run", "--nproc", "1", "--python", str(python), "--name", "early", str(worker), *ENDLESS]
    follower = follow(command, {**os.environ, **slow_start})
    until(lambda: jobs.ls() and jobs.ls()[0].step)
    follower.send_signal(signal.SIGINT)
    _, told = follower.communicate(timeout=20)
    assert follower.returncode == 130
    assert "interrupted while the job was starting: it was ended, nothing of it runs" in told
    run = jobs.find("early")
    assert jobs.status(run).state is State.STOPPED
    pid = jobs.Peeker().ranks(run)[0].pid
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_stop_of_a_lost_run_tells_what_can_be_known(tui, make_run):
    """Ranks that live are asked, and nobody confirms; where none lives nothing is written."""
    job = {"pid": 1, "start_time": 1.0, "boot_id": "", "host": socket.gethostname()}
    for name in ("alive", "dead"):
        run = make_run(name, "lost", heartbeat=time.time() - 100)
        run.write_job({**run.read_job(), "supervisor": job})
    for path in jobs.find("dead").event_files():
        path.write_text(path.read_text().replace('"process_start":', '"process_start":1.0,"was":'))
    asked = tui("stop", "alive")
    assert asked.returncode == 4 and "asked the ranks of" in asked.stdout and "Nobody can confirm it" in asked.stdout
    assert [request.kind for request in jobs.find("alive").pending()] == ["stop"]
    nobody = tui("stop", "dead")
    assert nobody.returncode == 0 and "is lost: no process of it is left to ask." in nobody.stdout
    assert not jobs.find("dead").pending()
    assert "--now needs a supervisor" in tui("stop", "--now", "alive").stderr


def test_a_double_dash_is_the_scripts(tui, python, tmp_path):
    """As with python; before the script it ends our own options."""
    script = tmp_path / "echo.py"
    script.write_text("import sys; print(sys.argv[1:])")
    ended = tui("run", "--nproc", 1, "--python", python, script, "a", "--", "--x", "--")
    assert "['a', '--', '--x', '--']" in ended.stdout.splitlines()
    ended = tui("run", "--nproc", 1, "--python", python, script, "--", "--x")
    assert "['--', '--x']" in ended.stdout.splitlines()
    ended = tui("run", "--nproc", 1, "--python", python, "--", script, "--x")
    assert "['--x']" in ended.stdout.splitlines()
    ended = tui("run", "--")
    assert ended.returncode == 2 and "required: SCRIPT\n" in ended.stderr


def test_help_says_where_secrets_belong(tui):
    """The command line is written down."""
    told = " ".join(tui("run", "--help").stdout.split())
    assert "kept in the run's job.json" in told and "give secrets in the environment" in told


def test_an_evaluation_without_numbers_has_no_hole(make_run, capsys):
    """Texts only: no colon before nothing."""
    Follower(make_run("run", extra={0: [(Eval("decode", {}, 1.0, 8), 9, time.time())]}), TextPrinter()).follow()
    assert "» decode at step 10  (8 rows, 1.0s)\n" in capsys.readouterr().out


def test_a_stopped_job_is_neither_success_nor_failure(launch, python, worker, until):
    """Whoever follows a job that somebody else stops gets 3."""
    command = [*COMMAND, "run", "--nproc", "2", "--python", str(python), "--name", "seen", str(worker), *ENDLESS]
    follower = follow(command)
    until(lambda: follower.stdout.readline().startswith("» step 1/"))
    until(lambda: jobs.status(jobs.find("seen")).state is State.RUNNING)
    jobs.stop(jobs.find("seen"))
    told, _ = follower.communicate(timeout=20)
    assert follower.returncode == 3
    assert told.splitlines()[-1].startswith("» seen stopped after step ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "nope.py"], "script='nope.py' does not exist in"),
        (["run", "--nproc", "0", __file__], "nproc=0 is not a number of processes"),
        (["stop", "nothing"], "run='nothing' is no run's id or name. `collie-tui ls` lists the runs."),
        ([], "the dashboard needs a terminal"),
        (["run"], "the following arguments are required: SCRIPT\n"),
    ],
)
def test_bad_input_gets_a_sentence(tui, arguments, sentence):
    """And 2, and no traceback."""
    ended = tui(*arguments)
    assert ended.returncode == 2
    assert sentence in ended.stderr and "Traceback" not in ended.stderr


def test_names_are_told_apart(make_run, tui):
    """Of runs with one name the live one is meant; otherwise more of the id is asked for."""
    first, second = make_run("twin"), make_run("twin")
    ended = tui("stop", "twin")
    assert ended.returncode == 2 and "means 2 runs" in ended.stderr
    assert jobs.find(first.id) == first and jobs.find(second.id[-4:]) == second
    live = make_run("twin", "running")
    assert jobs.find("twin") == live
    assert "Did you mean 'twin'?" in tui("stop", "twim").stderr


def test_an_empty_list_says_how_to_begin(tui):
    """Not a table without rows."""
    assert tui("ls").stdout == "No runs yet. `collie-tui run SCRIPT` starts one.\n"
    assert json.loads(tui("ls", "--json").stdout) == []


def test_commands_load_neither_textual_nor_torch():
    """They start at once, also where the dashboard's packages are slow to load."""
    code = "import sys, collie.jobs, collie.jobs.cli; print({'textual', 'rich', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
