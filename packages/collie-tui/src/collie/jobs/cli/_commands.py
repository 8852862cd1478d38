"""collie-tui ls and collie-tui stop."""

import argparse
import sys
import textwrap
import time

from collie.jobs._control import asked_to_stop, find, ls, stop, wait
from collie.jobs._fields import plain
from collie.jobs._format import format_ago, format_count, format_duration, format_number, format_progress
from collie.jobs._state import State
from collie.jobs._status import Status
from collie.jobs._summary import Summary, summary
from collie.jobs.cli._exit import EXIT_CODES
from collie.jobs.cli._json import to_json

_HEAD = ("RUN", "STATE", "STEP", "LOSS", "TOK/S", "ETA", "LAST EVENT", "ID")


def list_command(options: argparse.Namespace) -> int:
    """Print the runs, newest first."""
    runs = ls(options.runs)
    if options.json:
        print(to_json([run.as_dict() for run in runs], indent=2))
        return 0
    if not runs:
        print("No runs yet. `collie-tui run SCRIPT` starts one.")
        return 0
    rows = [_HEAD, *(_row(run) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
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


def stop_command(options: argparse.Namespace) -> int:
    """Stop one run; the exit status is 0 when it has ended (or was asked to, with --no-wait)."""
    run = find(options.run, options.runs)
    before = stop(run, options.means, step_grace=options.step_grace, term_grace=options.term_grace)
    if before.state is State.LOST and asked_to_stop(run):
        if not options.json:
            print(f"asked the ranks of {run.id} to stop after their step. Nobody can confirm it: the run is lost.")
        return _report(options, summary(run), EXIT_CODES["lost"])
    if not before.live:
        if not options.json:
            nothing = ": no process of it is left to ask" if before.state is State.LOST else " already"
            print(f"{run.id} is {before.state}{nothing}.")
        return _report(options, summary(run), 0)
    if options.no_wait:
        if not options.json:
            print(f"{run.id} was asked to stop.")
        return _report(options, summary(run), 0)
    try:
        after = wait(run, on_change=None if options.json else _say)
    except KeyboardInterrupt:
        print(f"\n{run.id} goes on stopping.", file=sys.stderr)
        return EXIT_CODES["left"]
    return _report(options, summary(run), 0 if after.state != "lost" else EXIT_CODES["lost"])


def _say(status: Status) -> None:
    print(status.sentence(), flush=True)


def _report(options: argparse.Namespace, after: Summary, code: int) -> int:
    if options.json:
        print(to_json(after.as_dict(), indent=2))
    return code
