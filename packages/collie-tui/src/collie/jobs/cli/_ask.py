"""collie-tui checkpoint and collie-tui evaluate: ask a run for something, and wait until it is done."""

import argparse
import dataclasses
import sys

from collie.events import Checkpoint, Eval, Record
from collie.jobs._answers import Asked, NoAnswer, ask
from collie.jobs._format import format_bytes, format_duration, format_number
from collie.jobs._json import to_json
from collie.jobs._rank import finished
from collie.jobs.cli._command import Commands, Handler, chosen_run
from collie.jobs.cli._exit import EXIT_CODES

_ABOUT = {
    "checkpoint": "save a checkpoint after the step that the run is in",
    "evaluate": "run all evaluators after the step that the run is in",
}


def add(commands: Commands) -> None:
    """Tell the parser of them."""
    for kind, about in _ABOUT.items():
        parser = commands.add_for_run(
            kind,
            _handler(kind),
            help=about,
            epilog="exit status: 0 it was done (with --no-wait: asked for), 1 it was not",
        )
        parser.add_argument("--no-wait", action="store_true", help="return as soon as it is asked for")
        parser.add_argument("--timeout", type=float, metavar="S", help="seconds to wait; by default until the run ends")


def _handler(kind: str) -> Handler:
    def command(options: argparse.Namespace) -> int:
        run = chosen_run(options)
        asked = ask(run, kind)
        if options.no_wait:
            print(to_json({"request": asked.id, "run": run.id}) if options.json else f"{run.id} was asked to {kind}.")
            return 0
        try:
            answers = asked.wait(options.timeout)
        except KeyboardInterrupt:
            print(f"\n{run.id} was asked to {kind}, and goes on.", file=sys.stderr)
            return EXIT_CODES["left"]
        except NoAnswer as error:
            print(to_json({"request": asked.id, "problem": str(error)}) if options.json else str(error))
            return 1
        _print(asked, answers, options.json)
        return 0

    return command


def _print(asked: Asked, answers: list[Record], as_json: bool) -> None:
    if as_json:
        told = [{"step": finished(one.step), "t": one.t, **dataclasses.asdict(one.event)} for one in answers]
        print(to_json({"request": asked.id, "answers": told}, indent=2))
        return
    for one in answers:
        event, at = one.event, f"step {finished(one.step)}"
        if isinstance(event, Checkpoint):
            print(f"{at}: {event.path} ({format_duration(event.seconds)}, {format_bytes(event.bytes)})")
        elif isinstance(event, Eval):
            results = "  ".join(f"{name} {format_number(value)}" for name, value in event.results.items())
            cost = f"{event.rows} rows, {format_duration(event.seconds)}"
            print(f"{at}: {event.name}: {results or 'no numbers'} ({cost})")
