"""Follows one run: all its events, read once, put together into an immutable view."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collie.events import Alert, Eval, EventReader, Prompt, Record, RunFolder, Sample, Step
from collie.jobs._fields import plain_record
from collie.jobs._peek import newest_attempt, rank_and_attempt
from collie.jobs._rank import Answer, Decoded, Evaluation, RankState, RankView, Warned, finished, warned
from collie.jobs._series import Curve, Series
from collie.jobs._summary import Summary, summarise

_RECORDS_A_REFRESH = 20_000
_EVALUATIONS = 512  # that are remembered
_TEXTS_OF = 16  # steps whose decoded texts are remembered
_ANSWERS = 64  # to prompts, that are remembered
ALERTS = "alerts.jsonl"
"""What the supervisor alarms of, in a run's folder: event records, like the ranks' own."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run at one moment, with everything that its ranks have said.

    Attributes:
        summary: the line about it.
        ranks: by rank, those of the run's newest attempt.
        loss: loss over the number of finished steps, as the first rank that knows it tells it.
        evaluations: the last one of each evaluator, oldest first.
        samples: texts of the last evaluation.
        history: the latest evaluations of all evaluators, oldest first.
        texts: the decoded texts of the latest steps that have any, by the number of finished steps.
        answers: to the latest prompts, in the order in which their first pieces came.
        evaluated_at: how many steps were finished when each of the latest evaluations ended.
        checkpoint: time of the last checkpoint and the number of steps finished before it.
        alerts: the latest of all ranks, oldest first.
        behind: whether more events are waiting to be read.
        lost_events: events that were dropped by a writer or lost, and lines that could not be read.
    """

    summary: Summary
    ranks: tuple[RankView, ...] = ()
    loss: Curve = Curve()  # noqa: RUF009 - immutable
    evaluations: tuple[Evaluation, ...] = ()
    samples: tuple[Decoded, ...] = ()
    history: tuple[Evaluation, ...] = ()
    texts: tuple[tuple[int, tuple[Decoded, ...]], ...] = ()
    answers: tuple[Answer, ...] = ()
    evaluated_at: tuple[int, ...] = ()
    checkpoint: tuple[float, int | None] | None = None
    alerts: tuple[Warned, ...] = ()
    behind: bool = False
    lost_events: int = 0


class RunReader:
    """Reads what is new in a run at each `refresh`; made for one thread."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._readers: dict[Path, EventReader] = {}
        self._states: dict[tuple[int, int], RankState] = {}
        self._loss = Series()
        self._loss_from: tuple[int, int] | None = None
        self._evaluated_at: dict[int, None] = {}
        self._history: deque[Evaluation] = deque(maxlen=_EVALUATIONS)
        self._texts: dict[int, list[Decoded]] = {}
        self._answers: dict[str, Answer] = {}
        self._behind = False
        self._uncountable = 0
        self._alarms = EventReader(run.path / ALERTS)
        self._alerts: deque[Warned] = deque(maxlen=32)

    def refresh(self, limit: int = _RECORDS_A_REFRESH) -> list[Record]:
        """Take in at most about `limit` new events and return them, rank by rank, their texts made plain."""
        for path in self.run.event_files():
            if path not in self._readers:
                self._readers[path] = EventReader(path)
        share = max(64, limit // max(1, len(self._readers)))
        self._behind = False
        fresh: list[Record] = []
        for path, reader in self._readers.items():
            records = reader.read(share)
            self._behind = self._behind or len(records) == share
            key = rank_and_attempt(path)
            for record in map(plain_record, records):
                if record is None:
                    self._uncountable += 1
                    continue
                self._take(key, record)
                fresh.append(record)
        for record in filter(None, map(plain_record, self._alarms.read(share))):
            if isinstance(record.event, Alert):
                self._alerts.append(warned(record, record.event))
                fresh.append(record)
        return fresh

    def _take(self, key: tuple[int, int], record: Record) -> None:
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = RankState(*key)
        state.add(record)
        event, step = record.event, finished(record.step)
        if isinstance(event, Step) and step is not None and event.loss is not None:
            if self._loss_from is None or key[1] > self._loss_from[1]:
                self._loss_from = key
            if key == self._loss_from:
                self._loss.add(step, event.loss)
        elif isinstance(event, Eval) and step is not None:
            self._evaluated_at[step] = None
            _forget_all_but(256, self._evaluated_at)
            self._history.append(state.evaluations[event.name])
        elif isinstance(event, Sample) and step is not None:
            self._texts.setdefault(step, []).append(state.samples[-1])
            _forget_all_but(_TEXTS_OF, self._texts)
        elif isinstance(event, Prompt):
            before = self._answers.get(event.request, Answer(event.request))
            self._answers[event.request] = before.and_then(event, step)
            _forget_all_but(_ANSWERS, self._answers)

    def view(self) -> RunView:
        """The run as far as it has been read, with its state judged now."""
        newest = newest_attempt(self.run, (attempt for _, attempt in self._states))
        states = [state for (_, attempt), state in sorted(self._states.items()) if attempt == newest]
        ranks = tuple(state.view() for state in states)
        evaluations = [evaluation for state in states for evaluation in state.evaluations.values()]
        alerts = [*self._alerts, *(alert for state in states for alert in state.alerts)]
        checkpoints = [state.checkpoint for state in self._states.values() if state.checkpoint is not None]
        return RunView(
            summary=summarise(self.run, ranks),
            ranks=ranks,
            loss=self._loss.curve(),
            evaluations=tuple(sorted(evaluations, key=lambda evaluation: evaluation.t)),
            samples=_last_samples(states),
            history=tuple(self._history),
            texts=tuple((step, tuple(texts)) for step, texts in self._texts.items()),
            answers=tuple(self._answers.values()),
            evaluated_at=tuple(self._evaluated_at),
            checkpoint=max(checkpoints, key=lambda checkpoint: checkpoint[0], default=None),
            alerts=tuple(sorted(alerts, key=lambda alert: alert.t)),
            behind=self._behind,
            lost_events=self._uncountable + sum(reader.gaps + reader.bad_lines for reader in self._readers.values()),
        )


def _forget_all_but(count: int, remembered: dict[Any, Any]) -> None:
    """Forget what came first."""
    while len(remembered) > count:
        del remembered[next(iter(remembered))]


def _last_samples(states: list[RankState]) -> tuple[Decoded, ...]:
    """The texts of the newest step that has any, from the first rank that wrote some there."""
    newest = max((sample.step or 0 for state in states for sample in state.samples), default=None)
    for state in states:
        texts = tuple(sample for sample in state.samples if (sample.step or 0) == newest)
        if texts:
            return texts
    return ()
