"""collie-tui stop: end a run after the step it is in."""

import argparse
import sys

from collie.jobs._control import asked_to_stop, stop, wait
from collie.jobs._json import to_json
from collie.jobs._order import Means
from collie.jobs._state import State
from collie.jobs._status import Status
from collie.jobs._summary import Summary, summary
from collie.jobs.cli._command import Commands, chosen_run
from collie.jobs.cli._exit import EXIT_CODES


def add(commands: Commands) -> None:
    """Tell the parser of it."""
    parser = commands.add_for_run(
        "stop",
        stop_command,
        help="stop a run after the step it is in, and wait until it has ended",
        description="Ask the ranks of RUN to stop after the step they are in; those that do not get TERM, then KILL.",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--now", dest="means", action="store_const", const=Means.TERM, help="do not wait for the step's end"
    )
    how.add_argument("--kill", dest="means", action="store_const", const=Means.KILL, help="kill every worker at once")
    parser.set_defaults(means=Means.STEP)
    parser.add_argument(
        "--step-grace", type=float, default=300.0, metavar="S", help="seconds to the step's end before TERM (300)"
    )
    parser.add_argument(
        "--term-grace", type=float, default=30.0, metavar="S", help="seconds after TERM before KILL (30)"
    )
    parser.add_argument("--no-wait", action="store_true", help="return as soon as the stop is asked for")


def stop_command(options: argparse.Namespace) -> int:
    """Stop one run; the exit status is 0 when it has ended (or was asked to, with --no-wait)."""
    run = chosen_run(options)
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
