"""Everything about one run: a title, its numbers, and five views of it."""

from typing import Literal

from textual import events
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.reactive import reactive
from textual.widgets import Static

from collie.jobs import RunView, State
from collie.tui._source import Snapshot
from collie.tui._theme import Roles
from collie.tui._widgets._ask import AskPane, Question
from collie.tui._widgets._chart import Chart
from collie.tui._widgets._evals import EvalsPane
from collie.tui._widgets._evaluation import EvaluationPane
from collie.tui._widgets._facts import Facts
from collie.tui._widgets._log import LogPane
from collie.tui._widgets._ranks import RankTable
from collie.tui._words import progress, state_piece

View = Literal["overview", "ranks", "log", "evals", "ask"]
VIEWS: tuple[View, ...] = ("overview", "ranks", "log", "evals", "ask")

_WIDE = 100  # columns from which the overview has room for ranks and log beside the curve
_TALL = 19  # lines
_TINY = 12  # lines below which the curve has the room of the evaluation


class PanelTitle(Static, Roles):
    """The run's name and state, and which view is shown."""

    def __init__(self) -> None:
        super().__init__(id="panel-title")
        self._shown: object = None

    def show(self, snapshot: Snapshot, view: View) -> None:
        """Write the line; repaint only if it is another."""
        run = snapshot.run.summary if snapshot.run is not None else None
        shown = (run and (run.name, run.state_word, progress(run)), view, self.size.width, self.app.theme)
        if shown == self._shown:
            return
        self._shown = shown
        tabs = self.paint(
            *(
                piece
                for number, name in enumerate(VIEWS, 1)
                for piece in (
                    (f" {number} ", "accent" if name == view else "dim"),
                    (f"{name.title()} ", "strong" if name == view else "dim"),
                )
            )
        )
        if run is None:
            self.update(tabs)
            return
        glyph, role = state_piece(run)
        left = self.paint(
            ("▌", "accent"), (run.name, "strong"), ("  ", ""), (glyph, role), (f"  {progress(run)}", "dim")
        )
        room = self.size.width - tabs.cell_len
        left.truncate(max(0, room - 1), overflow="ellipsis", pad=True)
        self.update(left.append(" ").append_text(tabs))


class RunPanel(Vertical):
    """Shows the selected run. A small panel shows one view at a time; in a large one the overview holds all."""

    view: reactive[View] = reactive("overview")
    chosen: View | None = None
    """The view that a person asked for; without one, a small panel opens the log of a run that has no more to show."""

    def compose(self) -> ComposeResult:
        """Title, facts, panes."""
        yield PanelTitle()
        yield Facts(id="facts")
        with Container(id="panes"):
            yield Chart(id="chart")
            yield EvaluationPane(id="evaluation")
            yield RankTable(id="ranks")
            yield LogPane(id="log")
            yield EvalsPane(id="evals")
            yield AskPane(id="ask")

    def on_mount(self) -> None:
        """Begin with the overview."""
        self._lay_out()

    def on_resize(self, event: events.Resize) -> None:
        """Choose between one pane and all of them."""
        self.set_class(event.size.width < _WIDE or event.size.height < _TALL, "-compact")
        self.set_class(event.size.height < _TINY, "-tiny")

    def watch_view(self) -> None:
        """Show another view."""
        self._lay_out()

    def _lay_out(self) -> None:
        for view in VIEWS:
            self.set_class(view == self.view, f"-{view}")

    def _best_view(self, run: RunView) -> View:
        """In a small panel a failed run and one without events open on their log: there the reason stands."""
        nothing_else = run.summary.status.state is State.FAILED or not (run.ranks or run.behind)
        return "log" if nothing_else and self.has_class("-compact") else "overview"

    def show(self, snapshot: Snapshot, now: float, asked: tuple[Question, ...] = ()) -> None:
        """Hand each part what it shows. asked: what was asked of models from here."""
        run = snapshot.run
        self.view = self.chosen or (self._best_view(run) if run is not None else "overview")
        self.query_one(PanelTitle).show(snapshot, self.view)
        self.query_one(Facts).show(run, now)
        if run is not None:
            self.query_one(Chart).show(run.loss, run.evaluated_at, live=run.summary.status.live)
        self.query_one(EvaluationPane).show(run, now)
        self.query_one(RankTable).show_ranks(run, now, snapshot.log.rank if snapshot.log is not None else None)
        self.query_one(LogPane).show(snapshot.log)
        self.query_one(EvalsPane).show(run, now)
        self.query_one(AskPane).show(run, asked)
