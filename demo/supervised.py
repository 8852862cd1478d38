"""What the demos share: run a script under `collie-tui run`, and read what its run left behind."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from collie.events import EventReader, Record, RunFolder

ROOT = pathlib.Path(__file__).parent.parent


def run_job(script: str, arguments: Sequence[str], nproc: int) -> RunFolder:
    """Run a script of this repository on `nproc` ranks as a supervised job, show its output indented, return its run.

    Raises SystemExit where the job did not finish.
    """
    words = ["collie-tui", "run", "--json", "--nproc", str(nproc), script, *arguments]
    print(" ".join(words), flush=True)
    command = [str(pathlib.Path(sys.executable).with_name("collie-tui")), *words[1:]]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        assert job.stdout is not None
        run: RunFolder | None = None
        for line in job.stdout:
            told = _parsed(line)
            if run is None and told.get("kind") == "run":
                run = RunFolder(pathlib.Path(told["path"]))
            for words_of_it in _in_words(told) if told else [line.rstrip("\n")]:
                print(f"    {words_of_it}", flush=True)
    if job.returncode or run is None:
        raise SystemExit(f"the job ended with exit status {job.returncode}: see its output above")
    return run


def _parsed(line: str) -> dict[str, Any]:
    """The object on a line of `collie-tui run --json`; an empty one for what is none, an error of the command."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _in_words(told: dict[str, Any]) -> list[str]:
    """The lines that show one such object."""
    at = f" after step {told['step']}" if told.get("step") is not None else ""
    match told["kind"]:
        case "run":
            return [f"{told['name']}: nproc {told['nproc']}, kept in {told['path']}"]
        case "output":
            return [told["line"]]
        case "step":
            return [f"step {told['step']}/{told['total']}  loss {told['loss']}  lr {told['lr']}"]
        case "eval":
            return [f"{told['name']}{at}: {told['results']}, {told['rows']} rows"]
        case "sample":
            return [f"text{at}: {told['prompt']!r} → {told['output']!r}"]
        case "checkpoint":
            return [f"checkpoint{at}: {told['path']}"]
        case "alert":
            return [f"rank {told['rank']}{at}: {told['message']}"]
        case "end":
            failure = told["first_failure"] or {}
            return [*failure.get("tail", ()), f"{told['state']}: {told['message']}"]
        case _:
            return []


def events_of_rank_0(run: RunFolder) -> list[Record]:
    """Everything that rank 0 wrote, in order."""
    return EventReader(run.event_files()[0]).read()
