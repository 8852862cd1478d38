"""Arguments of collie-train, and which command answers to them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from collie.interfaces import CollieError
from collie.recipes.cli._inspect import inspect_command

USAGE = 2
_LEFT = 130  # as a shell says of what Ctrl+C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (by default the process's own); returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        return inspect_command(options)
    except KeyboardInterrupt:
        return _LEFT
    except BrokenPipeError:  # the reader of our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _LEFT
    except CollieError as error:
        print(f"collie-train: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"collie-train: {error.strerror or error}{where}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="collie-train", description="Train language models; see what is trained.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    inspect = commands.add_parser(
        "inspect",
        help="show which tokens of a data set are trained",
        description="Show a row token by token, what is trained of it in brackets, and what became of all rows: "
        "counts by source, length percentiles, rows cut or left out.",
        epilog="exit status: 0 a run would train on it, 1 a run would be refused, 2 it could not be read. "
        "Options go over what a recipe says.",
    )
    inspect.add_argument("data", metavar="DATA_OR_RECIPE", help="a file or folder of rows, or a recipe (.yaml, .yml)")
    inspect.add_argument("--row", type=int, metavar="N", help="which row to show, from 0; else the first that is used")
    inspect.add_argument("--source", metavar="NAME", help="of which source of a recipe; else the first")
    inspect.add_argument("--rows", type=int, metavar="LIMIT", help="look at no more rows of each source")
    inspect.add_argument("--json", action="store_true", help="print a JSON object")
    inspect.add_argument("--tokenizer", metavar="PATH", help="a folder with a tokenizer, or a name of the Hub")
    inspect.add_argument("--chat-template", metavar="TEMPLATE", help="a Jinja file, text, or a template's name")
    inspect.add_argument("--train-on", type=_turns, metavar="TURNS", help="all, last, or numbers: 0,-1")
    inspect.add_argument("--max-length", type=int, metavar="N", help="tokens a row is cut to")
    inspect.add_argument("--format", help="the rows' format, where their columns fit several (not with a recipe)")
    inspect.add_argument("--split", help="of a folder that `datasets` saved (not with a recipe)")
    return parser


def _turns(text: str) -> str | tuple[int, ...]:
    if text in ("all", "last"):
        return text
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither all nor last nor numbers such as 0,-1") from None
