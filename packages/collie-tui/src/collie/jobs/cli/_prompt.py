"""collie-tui prompt: ask the model in training, and print its answer as it comes."""

import argparse
import dataclasses
import sys
from typing import Any

from collie.events import Prompt
from collie.interfaces import ConfigError
from collie.jobs._answers import NoAnswer, ask
from collie.jobs._format import format_duration
from collie.jobs._json import to_json
from collie.jobs._rank import finished
from collie.jobs.cli._command import Commands, chosen_run
from collie.jobs.cli._exit import EXIT_CODES

_OPTIONS = {
    "max_new_tokens": (int, "the most tokens of the answer"),
    "temperature": (float, "0 always takes the likeliest token"),
    "top_p": (float, "sample from the likeliest tokens that have this share"),
    "top_k": (int, "sample from so many likeliest tokens"),
}


def add(commands: Commands) -> None:
    """Tell the parser of it."""
    parser = commands.add_for_run(
        "prompt",
        prompt_command,
        help="ask the model in training, and print its answer as it comes",
        description="Ask the model in training, between two steps; Ctrl-C ends the answer. The run's Trainer needs a "
        "tokenizer, and collie-eval beside it.",
        epilog="exit status: 0 there is an answer, 1 there is none, or only a part of one",
    )
    parser.add_argument("text", metavar="TEXT", help="what to go on from; - reads standard input")
    parser.add_argument("--chat", action="store_true", help="as a user's message, by the model's chat template")
    for name, (kind, about) in _OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=about)
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds of silence to wait for (no limit)")


def prompt_command(options: argparse.Namespace) -> int:
    """Ask, and print what comes."""
    run = chosen_run(options)
    text = sys.stdin.read() if options.text == "-" else options.text
    if not text.strip():
        raise ConfigError("the prompt is empty: there is nothing to go on from.")
    said: dict[str, Any] = {name: value for name in _OPTIONS if (value := getattr(options, name)) is not None}
    said |= {"messages": [{"role": "user", "content": text}]} if options.chat else {"text": text}
    asked = ask(run, "prompt", **said)
    try:
        for record in asked.pieces(options.timeout):
            assert isinstance(record.event, Prompt)
            _print(record.event, finished(record.step), options.json)
            if record.event.done:
                return 1 if record.event.error else 0
    except KeyboardInterrupt:
        run.request("cancel", request=asked.id)
        print("\ncancelled", file=sys.stderr)
        return EXIT_CODES["left"]
    except NoAnswer as error:
        run.request("cancel", request=asked.id)
        print(to_json({"request": asked.id, "problem": str(error)}) if options.json else str(error))
    return 1


def _print(event: Prompt, step: int | None, as_json: bool) -> None:
    if as_json:
        print(to_json({"step": step, **dataclasses.asdict(event)}), flush=True)
        return
    print(event.text, end="\n" if event.done else "", flush=True)
    if not event.done:
        return
    if event.error:
        print(event.error, file=sys.stderr)
    elif event.tokens is not None:
        at = "before the first step" if not step else f"at step {step}"
        print(f"{event.tokens} tokens {at}, {format_duration(event.seconds)}", file=sys.stderr)
