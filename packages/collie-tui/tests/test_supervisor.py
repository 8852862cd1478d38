"""The supervisor with real processes: how jobs end, how they are stopped, and what survives what."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time

import psutil
import pytest

from collie import jobs
from collie.events import RunFolder, list_runs
from collie.interfaces import ConfigError
from collie.jobs import Means, State

pytestmark = pytest.mark.timeout(60)
ENDLESS = ("--steps", "100000", "--seconds", "0.02")


def _processes(run: RunFolder, script: str = "") -> list[psutil.Process]:
    """Living processes of a run, by the variable that only they have."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mine = process.environ().get("COLLIE_RUN_DIR") == str(run.path)
            if mine and process.status() != psutil.STATUS_ZOMBIE and any(script in part for part in process.cmdline()):
                found.append(process)
    return found


def _supervisor(run: RunFolder) -> int:
    return int(run.read_job()["supervisor"]["pid"])


def _stepping(run: RunFolder) -> bool:
    """Whether the supervisor knows that it runs and every rank has made a step: what comes then comes in training."""
    ranks = jobs.Peeker().ranks(run)
    return run.read_state()["state"] == "running" and len(ranks) == 2 and all(rank.step for rank in ranks)


def test_a_job_runs_to_its_end(launch, until):
    """State, exit file, rank logs and summary of a run that finishes, in a folder that only its user can read."""
    run = launch("--steps", "4")
    status = jobs.wait(run, 20)
    assert (status.state, status.exit_code, status.managed) == (State.FINISHED, 0, True)
    assert run.read_exit()["outcome"] == "finished"
    assert run.read_state()["state"] == "finished"
    job = run.read_job()
    assert job["nproc"] == 2 and job["managed"] is True and "--redirects=3" in job["argv"]
    assert [logs.rank for logs in jobs.rank_logs(run)] == [0, 1]
    assert "decoded: finetuning" in jobs.rank_logs(run)[0].stdout.read_text()
    summary = jobs.summary(run)
    assert (summary.name, summary.step, summary.total, summary.loss) == ("job", 4, 4, 0.75)
    assert summary.throughput == pytest.approx(2 * 100 / 0.02)
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((run.path / "job.json").stat().st_mode) == 0o600
    until(lambda: not _processes(run))


def test_secrets_stay_out_of_the_job_file(launch):
    """The difference in the environment is recorded, but no value whose name says that it opens something."""
    run = launch("--steps", "1", env={"DS_ACCELERATOR": "cpu", "HF_HUB_TOKEN": "open-sesame"})
    assert run.read_job()["env"]["DS_ACCELERATOR"] == "cpu"
    assert "open-sesame" not in (run.path / "job.json").read_text()
    assert jobs.wait(run, 20).state is State.FINISHED


def test_a_script_without_events_runs_too(launch, until):
    """It is running as soon as its workers are, says that it writes none, and its exit status is its outcome."""
    run = launch("--silent", "--seconds", "1.0")
    until(lambda: jobs.status(run).state is State.RUNNING)
    assert "no events yet" in jobs.status(run).message
    assert jobs.wait(run, 20).state is State.FINISHED
    assert jobs.summary(run).step is None


def test_a_failure_names_its_first_rank(launch):
    """Rank 1 raises and torchrun then ends rank 0; the record tells of rank 1, its step and its exception."""
    run = launch("--steps", "500", "--fail-at", "3")
    status = jobs.wait(run, 20)
    assert (status.state, status.exit_code) == (State.FAILED, 1)
    assert status.failure.rank == 1 and status.failure.step == 3
    assert status.failure.message == "ValueError: the loss is nan at lr=0.1; use a smaller lr"
    assert status.failure.tail[-1] == status.failure.message
    assert status.message == f"rank 1 after step 3: {status.failure.message}"


def test_a_killed_rank_is_told_from_a_raising_one(launch):
    """A rank that the kernel kills leaves no exception: its signal is the message."""
    status = jobs.wait(launch("--steps", "500", "--kill-at", "2"), 20)
    assert status.state is State.FAILED
    assert (status.failure.rank, status.failure.exit_code) == (1, -signal.SIGKILL)
    assert status.failure.message.startswith("killed by SIGKILL")


def test_a_stop_ends_every_rank_after_one_step(launch, until):
    """The request is heard at a step's end: no signal is sent, and the outcome is a stop."""
    run = launch(*ENDLESS)
    until(lambda: _stepping(run))
    jobs.stop(run)
    status = jobs.wait(run, 20)
    assert (status.state, status.exit_code) == (State.STOPPED, 0)
    assert {rank.outcome for rank in jobs.Peeker().ranks(run)} == {"stopped"}
    assert status.message == f"stopped after step {jobs.summary(run).step}, as asked"
    assert status.failure is None and not run.pending()
    until(lambda: not _processes(run))


def test_a_rank_that_reads_no_requests_gets_term(launch, until):
    """torchrun exits with 1 after TERM, as after a failure; it was asked for, so it is a stop."""
    run = launch(*ENDLESS, "--deaf")
    until(lambda: _stepping(run))
    jobs.stop(run, step_grace=0.3)
    status = jobs.wait(run, 20)
    assert (status.state, status.exit_code) == (State.STOPPED, 1)
    assert status.message.startswith("ended with TERM after step ")
    until(lambda: not _processes(run))


def test_a_rank_that_ignores_term_is_killed(launch, until):
    """The last rung: KILL to each worker's group, which also holds what the worker started."""
    run = launch(*ENDLESS, "--deaf", "--stubborn")
    until(lambda: _stepping(run))
    jobs.stop(run, step_grace=0.2, term_grace=0.4)
    assert until(lambda: jobs.status(run).state is State.STOPPING)
    status = jobs.wait(run, 20)
    assert status.state is State.STOPPED and status.message.startswith("killed after step ")
    until(lambda: not _processes(run))


def test_a_second_order_hurries_a_stop(launch, until):
    """Asking again with KILL does not wait for what the first order waits for."""
    run = launch(*ENDLESS, "--deaf", "--stubborn")
    until(lambda: _stepping(run))
    jobs.stop(run, step_grace=500)
    until(lambda: jobs.status(run).state is State.STOPPING)
    jobs.stop(run, Means.KILL)
    begun = time.monotonic()
    assert jobs.wait(run, 20).state is State.STOPPED
    assert time.monotonic() - begun < 10


def test_term_to_the_supervisor_means_stop(launch, until):
    """Whoever shuts the machine down stops the job in good order."""
    run = launch(*ENDLESS)
    until(lambda: _stepping(run))
    os.kill(_supervisor(run), signal.SIGTERM)
    assert jobs.wait(run, 20).message.endswith("as asked")


def test_the_supervisor_outlives_its_terminal(launch, until):
    """It has a session of its own, and SIGHUP neither ends it nor reaches the job."""
    run = launch(*ENDLESS)
    until(lambda: _stepping(run))
    supervisor = _supervisor(run)
    assert os.getsid(supervisor) != os.getsid(0)
    os.kill(supervisor, signal.SIGHUP)
    step = jobs.summary(run).step
    until(lambda: jobs.summary(run).step > step + 5)
    assert jobs.status(run).state is State.RUNNING
    jobs.stop(run)
    assert jobs.wait(run, 20).state is State.STOPPED


def test_the_supervisor_outlives_the_process_that_started_it(until, worker, launcher, runs):
    """A command that starts a job may end, its whole process group too."""
    code = (
        "import sys; from collie import jobs; "
        f"print(jobs.start({str(worker)!r}, {list(ENDLESS)!r}, nproc=2, launcher={launcher!r}).path, flush=True); "
        "sys.stdin.read()"
    )
    shell = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    run = RunFolder(runs / shell.stdout.readline().strip())
    os.killpg(shell.pid, signal.SIGKILL)
    shell.communicate()
    until(lambda: _stepping(run))
    assert jobs.status(run).state is State.RUNNING
    jobs.stop(run)
    assert jobs.wait(run, 20).state is State.STOPPED


def test_orphans_are_ended_when_torchrun_is_killed(launch, until):
    """Workers have sessions of their own and outlive torchrun; the supervisor adopts, ends and reaps them."""
    run = launch(*ENDLESS)
    until(lambda: _stepping(run))
    assert len(_processes(run, "worker.py")) == 3  # two workers, and torchrun, which was given the script
    os.kill(run.read_state()["torchrun_pid"], signal.SIGKILL)
    status = jobs.wait(run, 20)
    assert (status.state, status.exit_code) == (State.FAILED, -signal.SIGKILL)
    assert status.message == "torchrun: ended by SIGKILL"
    until(lambda: not _processes(run))


def test_processes_left_behind_are_ended(launch, until):
    """A rank that finishes but leaves a process in another session does not leave it for good."""
    run = launch("--steps", "2", "--leave-child")
    assert jobs.wait(run, 20).state is State.FINISHED
    until(lambda: not _processes(run))


def test_a_killed_supervisor_is_lost_and_training_goes_on(launch, until, monkeypatch):
    """Readers see it by pid, start time and boot id once the heartbeat is late; the request to stop still works."""
    monkeypatch.setattr("collie.jobs._status.HEARTBEAT_LATE", 0.5)
    run = launch(*ENDLESS)
    until(lambda: _stepping(run))
    os.kill(_supervisor(run), signal.SIGKILL)
    assert until(lambda: jobs.status(run).state is State.LOST)
    step = jobs.summary(run).step
    until(lambda: jobs.summary(run).step > step + 5)
    with pytest.raises(ConfigError, match="needs a supervisor"):
        jobs.stop(run, Means.KILL)
    jobs.stop(run)
    until(lambda: {rank.outcome for rank in jobs.Peeker().ranks(run)} == {"stopped"})


def test_a_living_supervisor_with_a_late_heartbeat_is_not_lost(launch, until):
    """A stopped clock or a slow disk makes heartbeats late; the process is what counts."""
    run = launch(*ENDLESS)
    until(lambda: _stepping(run))
    supervisor = psutil.Process(_supervisor(run))
    supervisor.suspend()
    until(lambda: supervisor.status() == psutil.STATUS_STOPPED)
    run.write_state({**run.read_state(), "heartbeat": time.time() - 100})
    assert jobs.status(run).state is State.RUNNING
    job = run.read_job()
    run.write_job({**job, "supervisor": {**job["supervisor"], "start_time": 1.0}})  # the pid of another process
    assert jobs.status(run).state is State.LOST
    run.write_job(job)
    supervisor.resume()


def test_a_late_start_leaves_nothing_behind(launch, until, slow_start, monkeypatch):
    """The error says that nothing of the job runs, so the supervisor and the ranks that it has started are ended."""
    monkeypatch.setattr("collie.jobs._leave._START_TIMEOUT", 3.0)
    with pytest.raises(jobs.LaunchError, match="did not start in 3 seconds and was ended"):
        launch(*ENDLESS, "--stubborn", env=slow_start)
    (run,) = list_runs()
    assert run.event_files(), "the ranks had begun"
    assert not _processes(run)
    assert jobs.status(run).state is State.FAILED


def test_a_run_can_be_opened_to_the_group(launch):
    """Its events, outcome and rank logs; never the folder of requests, and by default nothing."""
    run = launch("--steps", "4", group_readable=True)
    assert jobs.wait(run, 20).state is State.FINISHED
    logs = jobs.rank_logs(run)[0]
    for path in (run.path, run.events, run.logs, logs.folder.parent.parent, logs.folder):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 in (0o050, 0o055), path
    files = [run.path / "job.json", run.path / "exit.json", run.logs / "torchrun.log", run.logs / "supervisor.log"]
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o060 == 0o040 for path in [*files, logs.stdout, *run.event_files()])
    assert stat.S_IMODE(run.control.stat().st_mode) == 0o700


def test_a_launcher_that_does_not_exist_is_a_failure(worker):
    """What cannot be started is recorded like any failure, in a sentence."""
    run = jobs.start(worker, nproc=1, launcher=["/nonexistent/torchrun"])
    status = jobs.wait(run, 20)
    assert status.state is State.FAILED
    assert status.message.startswith("torchrun did not start: ") and "/nonexistent/torchrun" in status.message


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"script": "nope.py"}, "script='nope.py' does not exist in .*Give the path"),
        ({"script": "."}, "script='.' is a folder"),
        ({"nproc": 0}, "nproc=0 is not a number of processes. Use 1 or more"),
        ({"launcher": None, "python": "/nonexistent/python"}, "python='/nonexistent/python' does not run"),
    ],
)
def test_bad_values_start_nothing(worker, launcher, runs, options, sentence):
    """The mistake is told before a run folder is made."""
    arguments = {"script": worker, "launcher": launcher, **options}
    with pytest.raises(ConfigError, match=sentence):
        jobs.start(**arguments)
    assert not list(runs.glob("*"))


def test_a_python_without_torch_is_told_at_once(worker, tmp_path):
    """Not by a traceback of torchrun in a log."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')  # -S: no site-packages
    bare.chmod(0o755)
    with pytest.raises(ConfigError, match=r"has no torch\. Install it there"):
        jobs.start(worker, python=str(bare))


def test_gpus_are_counted(monkeypatch, tmp_path):
    """CUDA_VISIBLE_DEVICES decides, then nvidia-smi, then there are none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 2,3")
    assert jobs.gpu_count() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert jobs.gpu_count() == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: a)'\necho 'GPU 1: NVIDIA H100 (UUID: b)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert jobs.gpu_count() == 2
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert jobs.gpu_count() == 0
