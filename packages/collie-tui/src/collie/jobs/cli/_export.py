"""collie-tui export: a run's numbers and texts as CSV or JSON."""

import argparse
import csv
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from collie.events import Alert, Checkpoint, Eval, EventReader, Metric, Record, RunFolder, Sample, Step
from collie.interfaces import ConfigError
from collie.jobs._fields import plain_record
from collie.jobs._json import to_json
from collie.jobs._peek import rank_and_attempt
from collie.jobs._rank import finished
from collie.jobs.cli._command import Commands, chosen_run

_KINDS = {
    "steps": Step,
    "metrics": Metric,
    "evaluations": Eval,
    "samples": Sample,
    "checkpoints": Checkpoint,
    "alerts": Alert,
}
_AT_ONCE = 10_000  # events
_COMMON = ("rank", "attempt", "t", "step")


def add(commands: Commands) -> None:
    """Tell the parser of it."""
    parser = commands.add_for_run(
        "export",
        export_command,
        help="print a run's events as CSV or JSON",
        description="Print a run's events of one kind, a row each: rank by rank, attempt by attempt, each in the order "
        "of its steps. t is in seconds since the epoch; step counts finished steps.",
    )
    parser.add_argument("--what", choices=tuple(_KINDS), default="steps", help="which events (steps)")
    parser.add_argument("--format", choices=("csv", "json"), default=None, help="csv unless --json is given")
    parser.add_argument("--rank", type=int, action="append", metavar="N", help="this rank only; may be given again")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to; by default to standard output")


def export_command(options: argparse.Namespace) -> int:
    """Write the rows; a reader of half of them, such as head, ends it without a word."""
    run = chosen_run(options)
    as_json = options.json or options.format == "json"
    if options.json and options.format == "csv":
        raise ConfigError("--json and --format csv were both given: give one of them.")
    with ExitStack() as stack:
        to = sys.stdout
        if options.output is not None:
            to = stack.enter_context(options.output.open("w", encoding="utf-8", newline=""))
        rows = _rows(run, _KINDS[options.what], options.rank)
        (_write_json if as_json else _write_csv)(rows, _KINDS[options.what], to)
    return 0


def _rows(run: RunFolder, kind: type[Any], ranks: list[int] | None) -> Iterator[dict[str, Any]]:
    for path in run.event_files():
        if ranks is not None and rank_and_attempt(path)[0] not in ranks:
            continue
        reader = EventReader(path)
        while records := reader.read(_AT_ONCE):
            for record in filter(None, map(plain_record, records)):
                if isinstance(record.event, kind):
                    yield _row(record)


def _row(record: Record) -> dict[str, Any]:
    head = {"rank": record.rank, "attempt": record.attempt, "t": record.t, "step": finished(record.step)}
    return {**head, **dataclasses.asdict(record.event)}


def _write_json(rows: Iterator[dict[str, Any]], kind: type[Any], to: TextIO) -> None:
    """A list with an object a line, written as it is read: a long run needs no more memory than a short one."""
    before = "[\n"
    for row in rows:
        to.write(before + to_json(row))
        before = ",\n"
    to.write("[]\n" if before == "[\n" else "\n]\n")


def _write_csv(rows: Iterator[dict[str, Any]], kind: type[Any], to: TextIO) -> None:
    """A column a field; the results of an evaluation become a row each, since other evaluations have others."""
    fields = [field.name for field in dataclasses.fields(kind) if field.name != "results"]
    names = [*_COMMON, *fields, *(("metric", "value") if kind is Eval else ())]
    writer = csv.DictWriter(to, names)
    writer.writeheader()
    for row in rows:
        results = row.pop("results", None)
        for name, value in [(None, None)] if results is None else results.items():
            writer.writerow({**row, "metric": name, "value": value} if results is not None else row)
