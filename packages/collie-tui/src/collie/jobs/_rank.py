"""What one rank's events say about it."""

from collections import deque
from dataclasses import dataclass

from collie.events import Alert, Bye, Checkpoint, Eval, Hello, Phase, Prompt, Record, Sample, Step

_WINDOW = 16  # steps over which speed is measured
_SAMPLES = 64


def finished(step: int | None) -> int | None:
    """Number of finished steps, which is what people count, from an event's step: the index of the last, from 0."""
    return None if step is None else step + 1


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation's results.

    Attributes:
        name: the evaluator's name.
        results: metric name → value.
        step: number of steps finished before it, None outside training.
        t: seconds since the epoch at its end.
        seconds: how long it took.
        rows: rows evaluated.
    """

    name: str
    results: tuple[tuple[str, float], ...]
    step: int | None
    t: float
    seconds: float
    rows: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text that the model wrote in an evaluation, with what it was asked and, where known, what was hoped for."""

    prompt: str
    output: str
    target: str | None
    step: int | None
    rank: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a prompt so far.

    Attributes:
        request: id of the request.
        text: the pieces that have come.
        step: number of steps that the model had finished.
        error: why there is no answer, or only a part of one.
        tokens, seconds: of a whole answer.
    """

    request: str
    text: str = ""
    step: int | None = None
    done: bool = False
    error: str = ""
    tokens: int | None = None
    seconds: float | None = None

    def and_then(self, piece: Prompt, step: int | None) -> "Answer":
        """The answer with its next piece."""
        return Answer(self.request, self.text + piece.text, step, piece.done, piece.error, piece.tokens, piece.seconds)


@dataclass(frozen=True, slots=True)
class Warned:
    """An alert that a rank raised. step: number of finished steps; t: seconds since the epoch."""

    level: str
    code: str
    message: str
    rank: int
    step: int | None
    t: float


def warned(record: Record, alert: Alert) -> Warned:
    """An alert with what its record says of it."""
    return Warned(alert.level, alert.code, alert.message, record.rank, finished(record.step), record.t)


@dataclass(frozen=True, slots=True)
class RankView:
    """One rank at one moment; None where the rank has not said it.

    Attributes:
        step: number of finished global steps.
        total: steps that the run will make.
        seconds: wall time of that step.
        tgs: input tokens a GPU a second, over the last steps.
        pace: seconds from step to step, evaluations and saving in between included.
        memory: peak bytes on the device, resident bytes on a CPU.
        t: seconds since the epoch of the last event.
        outcome: how the rank said goodbye: finished, stopped or failed.
        message: what it said with it.
        phase: what it said it does: "training", "evaluating", "saving"; "" where it says nothing of the kind.
    """

    rank: int
    attempt: int
    host: str | None = None
    pid: int | None = None
    process_start: float | None = None
    world_size: int | None = None
    device: str | None = None
    step: int | None = None
    total: int | None = None
    epoch: int | None = None
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    seconds: float | None = None
    tgs: float | None = None
    pace: float | None = None
    memory: int | None = None
    t: float | None = None
    outcome: str | None = None
    message: str = ""
    phase: str = ""


class RankState:
    """Takes a rank's records in the order they were written and answers with views."""

    def __init__(self, rank: int, attempt: int) -> None:
        self.rank = rank
        self.attempt = attempt
        self.hello: Hello | None = None
        self.bye: Bye | None = None
        self.bye_t: float | None = None
        self.steps: deque[tuple[int | None, float, Step]] = deque(maxlen=_WINDOW)
        self.evaluations: dict[str, Evaluation] = {}
        self.samples: deque[Decoded] = deque(maxlen=_SAMPLES)
        self.checkpoint: tuple[float, int | None] | None = None
        self.alerts: deque[Warned] = deque(maxlen=8)
        self.t: float | None = None
        self.phase = ""
        self._view: RankView | None = None

    def add(self, record: Record) -> None:
        """Take the next record."""
        self._view = None
        self.t = record.t
        event, step = record.event, finished(record.step)
        match event:
            case Step():
                self.steps.append((step, record.t, event))
                self.bye = None  # a script may train more than once
            case Hello():
                self.hello, self.bye = event, None
            case Eval():
                results = tuple(event.results.items())
                self.evaluations.pop(event.name, None)  # the newest stands last
                self.evaluations[event.name] = Evaluation(
                    event.name, results, step, record.t, event.seconds, event.rows
                )
            case Sample():
                self._add_sample(Decoded(event.prompt, event.output, event.target, step, record.rank))
            case Checkpoint():
                self.checkpoint = (record.t, step)
            case Alert():
                self.alerts.append(warned(record, event))
            case Phase():
                self.phase = event.name
            case Bye():
                self.bye, self.bye_t = event, record.t
            case _:
                pass

    def _add_sample(self, sample: Decoded) -> None:
        if self.samples and self.samples[-1].step != sample.step:
            self.samples.clear()  # only the last evaluation's texts are of now
        self.samples.append(sample)

    def view(self) -> RankView:
        """The rank as it is now; the same object as long as no record came."""
        if self._view is None:
            self._view = self._make_view()
        return self._view

    def _make_view(self) -> RankView:
        hello, bye = self.hello, self.bye
        step, _, last = self.steps[-1] if self.steps else (None, None, None)
        return RankView(
            rank=self.rank,
            attempt=self.attempt,
            host=hello.host if hello else None,
            pid=hello.pid if hello else None,
            process_start=hello.process_start if hello else None,
            world_size=hello.world_size if hello else None,
            device=hello.device if hello else None,
            step=step,
            total=last.total if last else None,
            epoch=last.epoch if last else None,
            loss=last.loss if last else None,
            lr=last.lr if last else None,
            grad_norm=last.grad_norm if last else None,
            seconds=last.seconds if last else None,
            tgs=self._tokens_a_gpu_second(),
            pace=self._pace(),
            memory=last.memory if last else None,
            t=self.t,
            outcome=bye.outcome if bye else None,
            message=bye.message if bye else "",
            phase=self.phase,
        )

    def _tokens_a_gpu_second(self) -> float | None:
        """The ranks of one replica read the same tokens, so each has its share of them only."""
        seconds = sum(step.seconds for _, _, step in self.steps)
        if seconds <= 0:
            return None
        sharers = self.hello.tp_size * self.hello.pp_size if self.hello else 1
        return sum(step.tokens for _, _, step in self.steps) / seconds / max(1, sharers)

    def _pace(self) -> float | None:
        if len(self.steps) < 2:
            return self.steps[-1][2].seconds if self.steps else None
        first, last = self.steps[0], self.steps[-1]
        if first[0] is None or last[0] is None or last[0] <= first[0]:
            return last[2].seconds
        return max(0.0, last[1] - first[1]) / (last[0] - first[0])
