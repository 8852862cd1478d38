"""All evaluations of a run: metrics over its steps, and what the model wrote at one of them, beside an earlier one."""

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Static

from collie.jobs import Decoded, Evaluation, RunView, format_duration, format_number
from collie.tui._theme import Roles
from collie.tui._widgets._table import Column, Row, Table
from collie.tui._words import Piece, age

_TEXTS = 32


class EvaluationTable(Table):
    """A row a step at which something was evaluated, the newest first."""

    BORDER_TITLE = "evaluations"
    COLUMNS = (
        Column("STEP", 6, right=True),
        Column("RESULTS", 26, flexible=True, most=80),
        Column("ROWS", 6, right=True, priority=2),
        Column("TOOK", 6, right=True, priority=1),
        Column("AGO", 4, right=True, priority=3),
    )

    def show_history(self, history: tuple[Evaluation, ...], now: float) -> None:
        """Show evaluations, those of one step in one row, each number with how it changed since the step before."""
        groups: dict[int, list[Evaluation]] = {}
        for one in history:
            groups.setdefault(one.step or 0, []).append(one)
        rows, before = [], dict[str, float]()
        for step, group in sorted(groups.items()):
            results = {name: value for one in group for name, value in one.results}
            told = "  ".join(_changed(name, value, before.get(name)) for name, value in results.items())
            cells: tuple[Piece, ...] = (
                (str(step), "accent"),
                (told or "texts only", "strong" if told else "dim"),
                (str(max(one.rows for one in group)), "dim"),
                (format_duration(sum(one.seconds for one in group)), "dim"),
                (age(group[-1].t, now), "dim"),
            )
            rows.append(Row(str(step), cells))
            before |= results
        self.show(rows[::-1])


def _changed(name: str, value: float, before: float | None) -> str:
    """ppl 3.31 ↓0.12, since which way is better is the reader's to know."""
    if before is None or before == value:
        return f"{name} {format_number(value)}"
    arrow = "↓" if value < before else "↑"
    return f"{name} {format_number(value)} {arrow}{format_number(abs(value - before))}"


class SampleText(Static, Roles):
    """Prompt, target and output of each text, and what stood there before where it was another."""

    def write(self, step: int, texts: tuple[Decoded, ...], before: tuple[int, tuple[Decoded, ...]] | None) -> None:
        """Show the texts of a step; `before`: those of an earlier step, with it."""
        earlier = {(one.prompt, one.rank): one.output for one in before[1]} if before is not None else {}
        pieces: list[Piece] = []
        for text in texts[:_TEXTS]:
            was = earlier.get((text.prompt, text.rank))
            pieces += [("prompt   ", "dim"), (text.prompt.strip(), ""), ("\n", "")]
            if text.target is not None:
                pieces += [("target   ", "dim"), (text.target.strip(), "info"), ("\n", "")]
            pieces += [(f"step {step:<4} "[:9], "dim"), (text.output.strip() or "(nothing)", "strong"), ("\n", "")]
            if before is not None and was is not None and was != text.output:
                pieces += [(f"step {before[0]:<4} "[:9], "dim"), (was.strip() or "(nothing)", "warn"), ("\n", "")]
            pieces.append(("\n", ""))
        self.update(self.paint(*pieces) if pieces else self.paint(("no texts at this step", "dim")))


class EvalsPane(Horizontal):
    """The table, and the texts of the step that its cursor is on."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._view: RunView | None = None
        self._shown: object = None

    def compose(self) -> ComposeResult:
        """Table and texts, side by side."""
        yield EvaluationTable(id="evaluations")
        with VerticalScroll(id="samples", can_focus=True) as samples:
            samples.border_title = "texts"
            yield SampleText(id="sample-text")

    def show(self, view: RunView | None, now: float) -> None:
        """Show a run's evaluations."""
        self._view = view
        self.query_one(EvaluationTable).show_history(view.history if view is not None else (), now)
        self._write_texts()

    def on_table_highlighted(self, message: Table.Highlighted) -> None:
        """Another step's texts; the ranks' table need not know."""
        message.stop()
        self._write_texts()

    def _write_texts(self) -> None:
        view, key = self._view, self.query_one(EvaluationTable).key
        texts = dict(view.texts) if view is not None else {}
        step = int(key) if key is not None else 0
        steps = sorted(one for one in texts if one < step)
        before = (steps[-1], texts[steps[-1]]) if steps else None
        shown = (view.summary.id if view is not None else "", step, texts.get(step, ()), before, self.app.theme)
        if shown != self._shown:
            self._shown = shown
            self.query_one(SampleText).write(step, texts.get(step, ()), before)
            title = "texts" if before is None else f"texts of step {step}, and of step {before[0]} where they differ"
            self.query_one("#samples", VerticalScroll).border_title = title
