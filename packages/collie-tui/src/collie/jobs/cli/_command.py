"""What a command of collie-tui is made of."""

import argparse
from collections.abc import Callable
from typing import Protocol

from collie.events import RunFolder
from collie.jobs._control import find

Handler = Callable[[argparse.Namespace], int]


class Subcommands(Protocol):
    """What argparse's add_subparsers returns."""

    def add_parser(
        self, name: str, *, parents: list[argparse.ArgumentParser], help: str, description: str, epilog: str | None
    ) -> argparse.ArgumentParser: ...


class Commands:
    """Takes commands, each with the function that answers to it.

    Args:
        group: where argparse is told of them.
        shared: options that all of them have.
    """

    def __init__(self, group: Subcommands, shared: argparse.ArgumentParser) -> None:
        self._group, self._shared = group, shared

    def add(
        self, name: str, handler: Handler, *, help: str, description: str = "", epilog: str | None = None
    ) -> argparse.ArgumentParser:
        """A new command; `handler(options)` returns the exit status."""
        described = description or f"{help[0].upper()}{help[1:]}."
        parser = self._group.add_parser(name, parents=[self._shared], help=help, description=described, epilog=epilog)
        parser.set_defaults(handler=handler)
        return parser

    def add_for_run(
        self, name: str, handler: Handler, *, help: str, description: str = "", epilog: str | None = None
    ) -> argparse.ArgumentParser:
        """The same for a command about one run, with --json."""
        parser = self.add(name, handler, help=help, description=description, epilog=epilog)
        parser.add_argument("run", metavar="RUN", help="a run's id, the start of its id, or its name")
        parser.add_argument("--json", action="store_true", help="print JSON")
        return parser


def chosen_run(options: argparse.Namespace) -> RunFolder:
    """The run that was meant. Raises ConfigError: none, or more than one."""
    return find(options.run, options.runs)
