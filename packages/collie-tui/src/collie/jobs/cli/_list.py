"""collie-tui ls: the runs, newest first."""

import argparse
import textwrap
import time

from collie.jobs._control import ls
from collie.jobs._fields import plain
from collie.jobs._format import format_ago, format_count, format_duration, format_number, format_progress
from collie.jobs._json import to_json
from collie.jobs._summary import Summary
from collie.jobs.cli._command import Commands
from collie.jobs.cli._table import print_table

_HEAD = ("RUN", "STATE", "STEP", "LOSS", "TOK/S", "ETA", "LAST EVENT", "ID")


def add(commands: Commands) -> None:
    """Tell the parser of it."""
    parser = commands.add("ls", list_command, help="list the runs, newest first")
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def list_command(options: argparse.Namespace) -> int:
    """Print the runs, newest first."""
    runs = ls(options.runs)
    if options.json:
        print(to_json([run.as_dict() for run in runs], indent=2))
    elif not runs:
        print("No runs yet. `collie-tui run SCRIPT` starts one.")
    else:
        print_table(_HEAD, [_row(run) for run in runs])
    return 0


def _row(run: Summary) -> tuple[str, ...]:
    return (
        run.name,
        textwrap.shorten(run.status.message, 60, placeholder="…") if run.unreadable else run.state_word,
        format_progress(run.step, run.total),
        format_number(run.loss),
        format_count(run.throughput),
        format_duration(run.eta),
        format_ago(None if run.t is None else time.time() - run.t),
        plain(run.id),
    )
