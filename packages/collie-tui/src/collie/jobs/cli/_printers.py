"""The two voices of `collie-tui run`: lines for people, JSON for programs."""

import dataclasses
import os
import sys
from typing import Any, Protocol

from collie.events import Alert, Checkpoint, Eval, Record, RunFolder, Sample, Step
from collie.jobs._fields import text_of
from collie.jobs._format import format_bytes, format_count, format_duration, format_number
from collie.jobs._json import to_json
from collie.jobs._rank import finished
from collie.jobs._status import Status
from collie.jobs._summary import Summary, display_name

_TEXT_WIDTH = 200  # characters of a decoded text that are shown


class Printer(Protocol):
    """What a follower says."""

    def started(self, run: RunFolder, job: dict[str, Any]) -> None:
        """The job has a supervisor."""

    def state(self, status: Status) -> None:
        """The state, or the sentence about it, is another."""

    def output(self, stream: str, line: str) -> None:
        """Rank 0 wrote a line to "stdout" or "stderr"."""

    def step(self, record: Record, summary: Summary) -> None:
        """A step was made."""

    def event(self, record: Record) -> None:
        """An evaluation, a text, a checkpoint, an alert."""

    def left(self, run: RunFolder) -> None:
        """The job goes on without us."""

    def ended(self, name: str, status: Status) -> None:
        """The job has ended."""


class TextPrinter:
    """Rank 0's output as it is; our own lines begin with a mark and are dimmed on a terminal."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def _say(self, text: str, style: str = "2") -> None:
        print(f"\x1b[{style}m» {text}\x1b[0m" if self._colour else f"» {text}", flush=True)

    def started(self, run: RunFolder, job: dict[str, Any]) -> None:
        """Name, ranks, and where everything is kept."""
        ranks = "1 rank" if job.get("nproc") == 1 else f"{job.get('nproc')} ranks"
        self._say(f"{display_name(run.id)}: {text_of(job.get('script'))} on {ranks}, kept in {run.path}", "1")

    def state(self, status: Status) -> None:
        """The state and the sentence about it; a run that just runs shows that by its steps."""
        if status.message:
            self._say(f"{status.state}: {status.message}")

    def output(self, stream: str, line: str) -> None:
        """To the stream it came from."""
        print(line, file=sys.stderr if stream == "stderr" else sys.stdout, flush=True)

    def step(self, record: Record, summary: Summary) -> None:
        """Step, loss, rate, speed, time to go."""
        event = record.event
        assert isinstance(event, Step)
        done = finished(record.step)
        parts = [f"step {done}/{event.total}" if event.total else f"step {done}"]
        parts.append(f"loss {format_number(event.loss)}")
        if event.lr is not None:
            parts.append(f"lr {format_number(event.lr)}")
        if summary.throughput is not None:
            parts.append(f"{format_count(summary.throughput)} tok/s")
        if summary.eta:
            parts.append(f"{format_duration(summary.eta)} to go")
        self._say("  ".join(parts))

    def event(self, record: Record) -> None:
        """One line, a decoded text between quotation marks."""
        event = record.event
        at = "" if record.step is None else f" at step {finished(record.step)}"
        if isinstance(event, Eval):
            results = "  ".join(f"{name} {format_number(value)}" for name, value in event.results.items())
            told = f": {results}" if results else ""
            self._say(f"{event.name}{at}{told}  ({event.rows} rows, {format_duration(event.seconds)})", "36")
        elif isinstance(event, Sample):
            self._say(f"text{at}: {_quoted(event.prompt)} → {_quoted(event.output)}", "36")
        elif isinstance(event, Checkpoint):
            size = "" if event.bytes is None else f", {format_bytes(event.bytes)}"
            self._say(f"checkpoint{at}: {event.path} ({format_duration(event.seconds)}{size})")
        elif isinstance(event, Alert):
            self._say(f"rank {record.rank}{at}: {event.message}", "33")

    def left(self, run: RunFolder) -> None:
        """How to come back, and how to stop."""
        print(file=sys.stderr)
        print(
            f"{display_name(run.id)} goes on without this terminal.\n"
            f"  watch:  collie-tui\n  stop:   collie-tui stop {run.id}",
            file=sys.stderr,
            flush=True,
        )

    def ended(self, name: str, status: Status) -> None:
        """The outcome; of a failure also the last lines of the rank that failed first."""
        failure = status.failure
        if failure is not None and failure.tail:
            of = "torchrun" if failure.rank is None else f"rank {failure.rank}"
            print(f"the last lines of {of}:", file=sys.stderr)
            for line in failure.tail:
                print(f"  {line}", file=sys.stderr)
            sys.stderr.flush()
        style = {"finished": "1;32", "failed": "1;31"}.get(str(status.state), "1;33")
        self._say(f"{name} {status.sentence()}", style)


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return f"“{text}”" if len(text) <= _TEXT_WIDTH else f"“{text[:_TEXT_WIDTH]}…”"


class JsonPrinter:
    """One JSON object a line; "kind" says what it is, and "step" is the number of finished steps."""

    def _say(self, kind: str, **values: Any) -> None:
        print(to_json({"kind": kind, **values}), flush=True)

    def started(self, run: RunFolder, job: dict[str, Any]) -> None:
        """kind run."""
        self._say("run", id=run.id, name=display_name(run.id), path=str(run.path), nproc=job.get("nproc"))

    def state(self, status: Status) -> None:
        """kind state."""
        self._say("state", state=str(status.state), message=status.message)

    def output(self, stream: str, line: str) -> None:
        """kind output."""
        self._say("output", rank=0, stream=stream, line=line)

    def step(self, record: Record, summary: Summary) -> None:
        """kind step."""
        self._say("step", step=finished(record.step), **_fields(record), tokens_per_second=summary.throughput)

    def event(self, record: Record) -> None:
        """kind eval, sample, checkpoint or alert."""
        self._say(record.event.kind, step=finished(record.step), rank=record.rank, **_fields(record))

    def left(self, run: RunFolder) -> None:
        """kind left."""
        self._say("left", id=run.id)

    def ended(self, name: str, status: Status) -> None:
        """kind end."""
        failure = dataclasses.asdict(status.failure) if status.failure is not None else None
        self._say(
            "end", state=str(status.state), message=status.message, exit_code=status.exit_code, first_failure=failure
        )


def _fields(record: Record) -> dict[str, Any]:
    return dataclasses.asdict(record.event)
