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
from collie.jobs.cli import _again, _ask, _export, _list, _prompt, _remove, _run, _status, _stop, _tail
from collie.jobs.cli._command import Commands
from collie.jobs.cli._exit import EXIT_CODES, USAGE

_COMMANDS = (_run, _list, _status, _tail, _stop, _again, _ask, _prompt, _export, _remove)
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
        return int(options.handler(options))
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


def _dashboard(options: argparse.Namespace) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("collie-tui: the dashboard needs a terminal. `collie-tui ls --json` is for programs.", file=sys.stderr)
        return USAGE
    # By name: jobs and commands are used without the dashboard, and no import chain may lead from here to textual.
    tui = importlib.import_module("collie.tui")
    return int(tui.main(options.runs or runs_root()))


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
    parser.set_defaults(handler=_dashboard)
    group = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands (none: the dashboard)")
    commands = Commands(group, shared)
    for module in _COMMANDS:
        module.add(commands)
    return parser
