"""Starts a job: checks what was asked, makes the run folder, and leaves a supervisor behind."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collie.events import RunFolder
from collie.interfaces import ConfigError
from collie.jobs._leave import begin
from collie.jobs._resume import HIDDEN

# What can change how a job runs is written down; what can open doors is not.
_RECORDED = ("CUDA_", "DS_", "HF_H", "NCCL_", "OMP_", "PYTORCH_", "PYTHON", "TORCH", "GLOO_", "COLLIE_")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")


def gpu_count() -> int:
    """Number of GPUs that a job started now could use, by CUDA_VISIBLE_DEVICES or else nvidia-smi; 0 without any."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device.strip() for device in visible.split(",")]
        return len([device for device in devices if device and device != "-1"])
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listing = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def torchrun(python: str | None = None) -> list[str]:
    """The command that is torchrun. -P: a file of the user's folder must not stand in for a module of torchrun's."""
    return [python or sys.executable, "-P", "-m", "torch.distributed.run"]


def torchrun_flags(run: RunFolder, nproc: int) -> list[str]:
    """Flags for one node. --standalone would replace the id that names the log folder; a relative log folder would
    move with a script that changes its directory."""
    return [
        "--nnodes=1",
        f"--nproc-per-node={nproc}",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        f"--rdzv-id={run.id}",
        "--max-restarts=0",
        "--redirects=3",
        f"--log-dir={Path(run.logs).absolute()}",
    ]


def start(
    script: str | os.PathLike[str],
    args: Sequence[str] = (),
    *,
    nproc: int | None = None,
    name: str | None = None,
    root: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    python: str | None = None,
    launcher: Sequence[str] | None = None,
    group_readable: bool = False,
    notify: str = "",
) -> RunFolder:
    """Start `script` under torchrun with a supervisor of its own, which outlives this process and its terminal.

    Args:
        script: path of a Python script, relative to `cwd`.
        args: its arguments.
        nproc: ranks on this node; by default one a GPU, or 1.
        name: what people call the run; by default the script's name.
        root: where runs are kept; by default $COLLIE_RUNS or ~/.local/share/collie/runs.
        env: variables to add to this process's environment.
        cwd: the job's working directory, by default ours.
        python: the Python that has torch, by default this one.
        launcher: a command in torchrun's place that understands its flags.
        notify: a shell command that gets a JSON object on its standard input when the job has finished, failed or
            stalled, and for each alert.
        group_readable: whether the group may read the run (never its control folder); by default only its user.

    Returns:
        The run's folder, with the supervisor at work.

    Raises:
        ConfigError: a value cannot work (no such script, nproc below 1, a Python without torch).
        LaunchError: the supervisor did not start.
        KeyboardInterrupt: as it comes; what had been started by then is ended before.
    """
    folder = Path(cwd or os.getcwd()).absolute()
    _check_script(Path(script), folder)
    if nproc is not None and nproc < 1:
        raise ConfigError(f"nproc={nproc} is not a number of processes. Use 1 or more.")
    if launcher is None:
        _check_torch(python)
    nproc = nproc if nproc is not None else max(1, gpu_count())
    environment, git = {**os.environ, **(env or {})}, _git_state(folder)
    run = RunFolder.create(root, name=name or Path(script).stem, group_readable=group_readable)
    run = RunFolder(Path(run.path).absolute())
    command = [*(launcher or torchrun(python)), *torchrun_flags(run, nproc), *_script_words(str(script), args)]
    job = {
        "argv": command,
        "script": str(script),
        "args": list(args),
        "nproc": nproc,
        "nodes": 1,
        "cwd": str(folder),
        "env": _environment_difference(environment, env or {}),
        "created": time.time(),
        "managed": True,
        "notify": notify,
        "supervisor": None,
        "git": git,
    }
    begin(run, job, environment)
    return run


def _script_words(script: str, args: Sequence[str]) -> list[str]:
    """The script and its arguments as torchrun is to get them: it would eat a "--" behind the script, but takes one
    before the script as the end of its own options."""
    return ["--", script, *args] if list(args[:1]) == ["--"] else [script, *args]


def _check_script(script: Path, folder: Path) -> None:
    target = folder / script
    if target.is_dir():
        raise ConfigError(f"script={str(script)!r} is a folder. Give the path of a Python script.")
    if not target.is_file():
        raise ConfigError(f"script={str(script)!r} does not exist in {folder}. Give the path of a Python script.")
    if not os.access(target, os.R_OK):
        raise ConfigError(f"script={str(script)!r} cannot be read. Change its permissions (chmod u+r).")


def _check_torch(python: str | None) -> None:
    """Ask the Python that will run the job, which need not be this one, whether it has torch, without importing it."""
    program = python or sys.executable
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    try:
        answer = subprocess.run([program, "-P", "-c", question], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"python={program!r} does not run ({error}). Name a Python that has torch.") from error
    if answer.returncode:
        raise ConfigError(
            f"python={program!r} has no torch. Install it there (pip install collie-train), "
            "or name the Python that has it (--python PATH)."
        )


def _environment_difference(environment: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """The variables that make this job differ from another of the same command, secrets hidden."""
    names = {name for name in environment if name.startswith(_RECORDED)} | set(added)
    return {
        name: HIDDEN if any(word in name.upper() for word in _SECRET) else environment[name] for name in sorted(names)
    }


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and whether tracked files differ from it; None outside a repository or without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=3, check=True).stdout.strip()

    try:
        commit, branch = git("rev-parse", "HEAD"), git("rev-parse", "--abbrev-ref", "HEAD")
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "branch": branch, "changed": changed}
