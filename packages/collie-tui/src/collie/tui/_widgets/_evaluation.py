"""The last evaluation: its numbers and what the model wrote."""

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from collie.jobs import Decoded, Evaluation, RunView, format_number
from collie.tui._theme import Roles
from collie.tui._words import ago

_TEXTS = 32


class EvaluationPane(VerticalScroll, Roles):
    """Results of each evaluator, newest first, then decoded texts as prompt → output."""

    BORDER_TITLE = "last evaluation"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._text = Text()

    def compose(self) -> ComposeResult:
        """One static text in a scrolling box."""
        yield Static(id="evaluation-text")

    def show(self, view: RunView | None, now: float) -> None:
        """Show what was evaluated last."""
        text = self._written(view, now)
        if text != self._text or text.spans != self._text.spans:
            self._text = text
            self.query_one("#evaluation-text", Static).update(text)

    def _written(self, view: RunView | None, now: float) -> Text:
        if view is None or not (view.evaluations or view.samples):
            ended = view is not None and not view.summary.status.live
            return self.paint(("no evaluation" if ended else "no evaluation yet", "dim"))
        lines = [self._results(group, now) for group in _by_step(view.evaluations)]
        lines += [self._sample(sample) for sample in view.samples[:_TEXTS]]
        return Text("\n").join(lines)

    def _results(self, group: list[Evaluation], now: float) -> Text:
        line = Text()
        for name, value in (result for evaluation in group for result in evaluation.results):
            line.append_text(self.paint((f"{name} ", "dim"), (f"{format_number(value)}  ", "strong")))
        last = group[-1]
        at = "" if last.step is None else f"step {last.step} · "
        line.append_text(self.paint((f"{at}{last.rows} rows · {ago(last.t, now)}", "dim")))
        return line

    def _sample(self, sample: Decoded) -> Text:
        prompt, output = _one_line(sample.prompt), _one_line(sample.output)
        pieces = [(f"{prompt} ", "dim"), ("→ ", "accent"), (output or "(nothing)", "strong")]
        if sample.target is not None and _one_line(sample.target) != output:
            pieces += [("\n  expected ", "dim"), (_one_line(sample.target), "info")]
        text = self.paint(*pieces)
        text.no_wrap = False
        return text


def _by_step(evaluations: tuple[Evaluation, ...]) -> list[list[Evaluation]]:
    """Evaluators that ran after the same step share a line; the newest step first."""
    groups: dict[int | None, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.step, []).append(evaluation)
    return sorted(groups.values(), key=lambda group: group[-1].t, reverse=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())
