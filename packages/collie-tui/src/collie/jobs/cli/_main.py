"""Arguments of collie-tui, and which command answers to them."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from collie.events import runs_root
from collie.interfaces import CollieError
from collie.jobs._fields import plain
from collie.jobs._order import Means
from collie.jobs.cli._commands import list_command, stop_command
from collie.jobs.cli._exit import EXIT_CODES, USAGE
from collie.jobs.cli._run import run_command

_SHIELDED = "\0--"  # no argument of a process can hold a NUL

_EPILOG = """\
Jobs go on when this terminal closes. `collie-tui` without a command opens the dashboard and finds them again.
Runs are kept in $COLLIE_RUNS, or else in ~/.local/share/collie/runs.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (by default the process's own); returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets "?" for a glyph, not a traceback
    options = _parse(list(sys.argv[1:] if argv is None else argv))
    try:
        match options.command:
            case "run":
                return run_command(options)
            case "ls":
                return list_command(options)
            case "stop":
                return stop_command(options)
            case _:
                return _dashboard(options.runs)
    except KeyboardInterrupt:
        return EXIT_CODES["left"]
    except CollieError as error:
        print(f"collie-tui: {plain(str(error), newlines=True)}", file=sys.stderr)
        return USAGE
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output is gone; the job is not
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_CODES["left"]
        where = f" ({error.filename})" if error.filename else ""
        print(f"collie-tui: {error.strerror or error}{where}", file=sys.stderr)
        return USAGE


def _parse(argv: list[str]) -> argparse.Namespace:
    """The options in `argv`. As for python, what follows a script is the script's: a "--" too, which argparse eats."""
    shielded = argv
    if "--" in argv and "run" in argv[: argv.index("--")]:
        shielded = [_SHIELDED if word == "--" else word for word in argv]
    options = _parser().parse_args(shielded)
    if options.command == "run":
        words = [options.script, *options.args]
        if words[0] == _SHIELDED:  # run -- SCRIPT
            words = words[1:]
        if not words:
            _parser().parse_args(["run"])  # says what is missing
        options.script, *options.args = ("--" if word == _SHIELDED else word for word in words)
    return options


def _dashboard(root: Path | None) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("collie-tui: the dashboard needs a terminal. `collie-tui ls --json` is for programs.", file=sys.stderr)
        return USAGE
    # By name: jobs and commands are used without the dashboard, and no import chain may lead from here to textual.
    tui = importlib.import_module("collie.tui")
    return int(tui.main(root or runs_root()))


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="collie-tui",
        description="Start training jobs, watch every rank, stop them: from one terminal.",
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--runs", type=Path, metavar="DIR", help="where the runs are, instead of $COLLIE_RUNS")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="where the runs are, instead of $COLLIE_RUNS")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands (none: the dashboard)")
    _add_run(commands, shared)
    ls = commands.add_parser("ls", parents=[shared], help="list the runs, newest first")
    ls.add_argument("--json", action="store_true", help="print a JSON list")
    _add_stop(commands, shared)
    return parser


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", shared: argparse.ArgumentParser) -> None:
    run = commands.add_parser(
        "run",
        parents=[shared],
        help="start a script under torchrun as a job of its own, and follow it",
        description="Start SCRIPT under torchrun as a job that outlives this terminal, and follow it: the output of "
        "rank 0, steps, evaluations. Ctrl-C leaves the job running. The command line is kept in the run's job.json, "
        "which only you can read (with --group-readable your group too): give secrets in the environment instead.",
        epilog="exit status: 0 the job finished, 1 it failed, 3 it was stopped, 4 it was lost, 130 it was left running",
    )
    run.add_argument("--nproc", type=int, metavar="N", help="number of ranks; by default one a GPU, or 1")
    run.add_argument("--name", help="what to call the run; by default the script's name")
    run.add_argument("--python", metavar="PATH", help="the Python that has torch; by default the one of collie-tui")
    run.add_argument("--detach", action="store_true", help="start the job and return at once")
    run.add_argument(
        "--group-readable", action="store_true", help="let your group read the run, but never ask anything of it"
    )
    run.add_argument("--json", action="store_true", help="print one JSON object a line")
    run.add_argument("script", metavar="SCRIPT", help="path of a Python script")
    rest = run.add_argument("args", metavar="ARGS", nargs=argparse.REMAINDER, help="arguments of the script")
    rest.required = False  # or a missing SCRIPT would be told as a missing ARGS too


def _add_stop(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", shared: argparse.ArgumentParser) -> None:
    stop = commands.add_parser(
        "stop",
        parents=[shared],
        help="stop a run after the step it is in, and wait until it has ended",
        description="Ask the ranks of RUN to stop after the step they are in; those that do not get TERM, then KILL.",
    )
    stop.add_argument("run", metavar="RUN", help="a run's id, the start of its id, or its name")
    how = stop.add_mutually_exclusive_group()
    how.add_argument(
        "--now", dest="means", action="store_const", const=Means.TERM, help="do not wait for the step's end"
    )
    how.add_argument("--kill", dest="means", action="store_const", const=Means.KILL, help="kill every worker at once")
    stop.set_defaults(means=Means.STEP)
    stop.add_argument(
        "--step-grace", type=float, default=300.0, metavar="S", help="seconds to the step's end before TERM (300)"
    )
    stop.add_argument("--term-grace", type=float, default=30.0, metavar="S", help="seconds after TERM before KILL (30)")
    stop.add_argument("--no-wait", action="store_true", help="return as soon as the stop is asked for")
    stop.add_argument("--json", action="store_true", help="print a JSON object")
