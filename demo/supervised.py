"""What the demos share: run a script under `collie-tui run`, and read what its run left behind."""

import pathlib
import subprocess
import sys
from collections.abc import Sequence

from collie.events import EventReader, Record, RunFolder, list_runs

ROOT = pathlib.Path(__file__).parent.parent


def run_job(script: str, arguments: Sequence[str], nproc: int) -> RunFolder:
    """Run a script of this repository on `nproc` ranks as a supervised job, show its output indented, return its run.

    Raises SystemExit where the job did not finish.
    """
    words = ["collie-tui", "run", "--nproc", str(nproc), script, *arguments]
    print(" ".join(words), flush=True)
    command = [str(pathlib.Path(sys.executable).with_name("collie-tui")), *words[1:]]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        assert job.stdout is not None
        for line in job.stdout:
            print(f"    {line}", end="", flush=True)
    if job.returncode:
        raise SystemExit(f"the job ended with exit status {job.returncode}: see its output above")
    return list_runs()[0]


def events_of_rank_0(run: RunFolder) -> list[Record]:
    """Everything that rank 0 wrote, in order."""
    return EventReader(run.event_files()[0]).read()
