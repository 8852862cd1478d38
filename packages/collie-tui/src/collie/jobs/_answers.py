"""Something asked of a run, and what came of it: found among rank 0's events."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from collie.events import Alert, Bye, Checkpoint, Eval, EventReader, Log, Prompt, Record, RunFolder, Step
from collie.interfaces import CollieError, ConfigError
from collie.jobs._fields import plain_record
from collie.jobs._peek import Peeker, rank_and_attempt
from collie.jobs._status import status

_INTERVAL = 0.1  # seconds between two looks


class NoAnswer(CollieError):
    """What was asked for was not done."""


def ask(run: RunFolder, kind: str, **arguments: Any) -> "Asked":
    """Ask for a "checkpoint", an "evaluate" or a "prompt"; whoever trains does it after the step under way.

    arguments: what comes with it; of a prompt `text` or `messages`, and how the answer is generated.

    Raises:
        ConfigError: the run has ended, or nobody knows.
    """
    now = status(run, Peeker().ranks(run))
    if not now.live:
        raise ConfigError(f"{run.id} cannot be asked to {kind}: it is {now.sentence()}.")
    listener = Asked(run, kind)
    listener.id = run.request(kind, **arguments)
    return listener


class Asked:
    """A request to a run, and its answer."""

    def __init__(self, run: RunFolder, kind: str) -> None:
        self.run, self.kind, self.id = run, kind, ""
        self._readers: dict[Path, EventReader] = {}
        self._records: list[Record] = []
        self._read()
        self._records.clear()  # what was said before

    def wait(self, timeout: float | None = None) -> list[Record]:
        """The events that answer it: a Checkpoint, or the Eval of each evaluator.

        Raises:
            NoAnswer: the run said that it could not, ended before, or said nothing within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        peeker = Peeker()
        while True:
            now = status(self.run, peeker.ranks(self.run))
            self._read()  # after that look: what was said before it is among the records
            answer = _ANSWERS[self.kind](self._since_heard())
            if answer is not None:
                return answer
            if not now.live:
                raise NoAnswer(f"{self.run.id} did not {self.kind}: it is {now.sentence()}.")
            if deadline is not None and time.monotonic() >= deadline:
                raise NoAnswer(f"{self.run.id} did not {self.kind} within {timeout:g} seconds; it may yet.")
            time.sleep(_INTERVAL)

    def pieces(self, timeout: float | None = None) -> Iterator[Record]:
        """The pieces of a prompt's answer as they come, the last one with `done`.

        Raises:
            NoAnswer: the run ended before, or said nothing for `timeout` seconds.
        """
        heard, peeker, given = time.monotonic(), Peeker(), 0
        while True:
            now = status(self.run, peeker.ranks(self.run))
            self._read()
            for record in self._records[given:]:
                given += 1
                if isinstance(record.event, Prompt) and record.event.request == self.id:
                    heard = time.monotonic()
                    yield record
                    if record.event.done:
                        return
            if not now.live:
                raise NoAnswer(f"{self.run.id} did not answer: it is {now.sentence()}.")
            if timeout is not None and time.monotonic() - heard >= timeout:
                raise NoAnswer(f"{self.run.id} has said nothing for {timeout:g} seconds; it may yet.")
            time.sleep(_INTERVAL)

    def _since_heard(self) -> list[Record]:
        """What rank 0 has said since it heard of this, which it says in its log; nothing before that."""
        marks = [
            at for at, one in enumerate(self._records) if isinstance(one.event, Log) and self.id in one.event.message
        ]
        return self._records[marks[0] :] if marks else []

    def _read(self) -> None:
        for path in self.run.event_files():
            if rank_and_attempt(path)[0] == 0:
                reader = self._readers.setdefault(path, EventReader(path))
                self._records += filter(None, map(plain_record, reader.read()))


def _checkpoint(heard: list[Record]) -> list[Record] | None:
    """A checkpoint is written behind training: any number of steps may come in between."""
    for record in heard:
        if isinstance(record.event, Checkpoint):
            return [record]
        if isinstance(record.event, Alert) and record.event.code == "checkpoint":
            raise NoAnswer(record.event.message)
    return None


def _evaluate(heard: list[Record]) -> list[Record] | None:
    """The evaluators run between the step in which the request was heard and the next one."""
    steps = [at for at, record in enumerate(heard) if isinstance(record.event, Step | Bye)]
    evaluations = [at for at, record in enumerate(heard) if isinstance(record.event, Eval)]
    if evaluations:
        over = next((at for at in steps if at > evaluations[0]), None)
        return None if over is None else [heard[at] for at in evaluations if at < over]
    if len(steps) > 1:
        raise NoAnswer("the run has no evaluators.")
    return None


_ANSWERS: dict[str, Callable[[list[Record]], list[Record] | None]] = {"checkpoint": _checkpoint, "evaluate": _evaluate}
