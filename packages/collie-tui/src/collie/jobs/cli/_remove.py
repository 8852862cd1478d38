"""collie-tui rm: delete runs that have ended, with all that is in their folders."""

import argparse
import os
import shutil
import sys

from collie.events import RunFolder
from collie.interfaces import ConfigError
from collie.jobs._control import find
from collie.jobs._format import format_bytes
from collie.jobs._json import to_json
from collie.jobs._peek import Peeker
from collie.jobs._state import State
from collie.jobs._status import anyone_may_listen, status
from collie.jobs.cli._command import Commands


def add(commands: Commands) -> None:
    """Tell the parser of it."""
    parser = commands.add(
        "rm",
        remove_command,
        help="delete runs that have ended: events, logs, and checkpoints in their folders",
        description="Delete runs that have ended, with all that is in their folders: events, logs, and the checkpoints "
        "that lie there. Checkpoints that were saved elsewhere stay. A run that may be alive is refused.",
    )
    parser.add_argument("names", metavar="RUN", nargs="+", help="a run's id, the start of its id, or its name")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print JSON")


def remove_command(options: argparse.Namespace) -> int:
    """Delete, after all of them were found to be over and the question was answered."""
    runs = list({run.id: run for run in (find(name, options.runs) for name in options.names)}.values())
    for run in runs:
        _refuse_live(run)
    sizes = {run.id: _size(run) for run in runs}
    if not options.yes:
        if not sys.stdin.isatty() or options.json:
            raise ConfigError("nobody is there to be asked whether to delete: give --yes.")
        for run in runs:
            print(f"{run.id}  {format_bytes(sizes[run.id])}{_checkpoints(run)}")
        if input("Delete? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was deleted.")
            return 1
    for run in runs:
        shutil.rmtree(run.path)
    if options.json:
        print(to_json([{"id": run.id, "bytes": sizes[run.id]} for run in runs], indent=2))
    else:
        print(f"deleted {len(runs)} run{'s' if len(runs) > 1 else ''}, {format_bytes(sum(sizes.values()))}.")
    return 0


def _refuse_live(run: RunFolder) -> None:
    ranks = Peeker().ranks(run)
    now = status(run, ranks)
    if now.live:
        raise ConfigError(f"{run.id} is {now.state}: stop it first (collie-tui stop {run.id}).")
    if now.state is State.LOST and anyone_may_listen(ranks):
        raise ConfigError(f"{run.id} is lost and one of its ranks may be alive: stop it first.")


def _size(run: RunFolder) -> int:
    total = 0
    for folder, _, names in os.walk(run.path):
        for name in names:
            total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _checkpoints(run: RunFolder) -> str:
    count = sum(1 for _ in run.path.glob("checkpoints/*/"))
    return f", {count} checkpoint{'s' if count > 1 else ''} among it" if count else ""
