"""What the two levels of the dashboard have in common."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, cast

from textual import events
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Input

from collie.tui._source import Snapshot
from collie.tui._widgets import EvaluationTable, LogPane, RankTable, RunPanel, Table
from collie.tui._widgets._panel import VIEWS, View

if TYPE_CHECKING:
    from collie.tui._app import Dashboard

_ROOMY = 72  # columns that the keys need with room between them
_VIEWS = Binding.Group("views", compact=True)
_RANKS = Binding.Group("rank", compact=True)


RUN_BINDINGS: list[BindingType] = [
    Binding("s", "app.stop_run", "stop", id="stop"),
    Binding("1", "view('overview')", "overview", group=_VIEWS, id="overview"),
    Binding("2", "view('ranks')", "ranks", group=_VIEWS, id="ranks"),
    Binding("3", "view('log')", "log", group=_VIEWS, id="log"),
    Binding("4", "view('evals')", "evals", group=_VIEWS, id="evals"),
    Binding("5", "view('ask')", "ask", group=_VIEWS, id="ask"),
    Binding("left_square_bracket", "rank(-1)", "previous rank", key_display="[", group=_RANKS, id="rank.previous"),
    Binding("right_square_bracket", "rank(1)", "next rank", key_display="]", group=_RANKS, id="rank.next"),
    Binding("e", "stream", "out/err", id="stream"),
]
"""Keys that work on the selected run."""


_FOCUS: dict[str, type[Widget]] = {"ranks": RankTable, "log": LogPane, "evals": EvaluationTable, "ask": Input}
"""What has the focus in a view."""


class SnapshotScreen(Screen[None]):
    """A screen that shows snapshots."""

    @property
    def dashboard(self) -> Dashboard:
        """The application."""
        return cast("Dashboard", self.app)

    def show(self, snapshot: Snapshot, now: float) -> None:
        """Hand a snapshot to the widgets. now: seconds since the epoch."""
        self.query_one(RunPanel).show(snapshot, now, self.dashboard.questions)

    def on_screen_resume(self) -> None:
        """Be up to date when we come to the front."""
        self.call_after_refresh(self.refresh_snapshot)

    def refresh_snapshot(self) -> None:
        """Show the latest snapshot again: the clock has moved, or the screen has changed."""
        with contextlib.suppress(NoMatches):  # a screen that is being built or taken down has not all its parts
            self.show(self.dashboard.snapshot, time.time())

    def action_view(self, view: View) -> None:
        """Change what the panel shows, and put the focus where keys make sense."""
        panel = self.query_one(RunPanel)
        panel.view = panel.chosen = view if view in VIEWS else "overview"
        target = _FOCUS.get(view)
        if target is not None:
            self.query_one(target).focus()
        else:
            self.focus_first()
        self.call_after_refresh(self.refresh_snapshot)

    def on_resize(self, event: events.Resize) -> None:
        """All keys stay in sight on a narrow terminal, closer together."""
        self.query_one(Footer).compact = event.size.width < _ROOMY

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that would do nothing, without a run or without logs, are not shown."""
        snapshot = self.dashboard.snapshot
        if action in ("rank", "stream"):
            return snapshot.log is not None and snapshot.log.path is not None
        return snapshot.run is not None if action == "view" else True

    def focus_first(self) -> None:
        """Where the focus is in the overview."""
        self.set_focus(None)

    def action_rank(self, by: int) -> None:
        """Show the log of another rank."""
        log = self.dashboard.snapshot.log
        if log is not None and log.ranks:
            place = log.ranks.index(log.rank) if log.rank in log.ranks else 0
            self.dashboard.look_at(rank=log.ranks[(place + by) % len(log.ranks)])

    def action_stream(self) -> None:
        """Show the rank's other output."""
        log = self.dashboard.snapshot.log
        if log is not None:
            self.dashboard.look_at(stream="stdout" if log.stream == "stderr" else "stderr")

    def on_table_highlighted(self, message: Table.Highlighted) -> None:
        """The rank under the cursor is the rank whose log is shown."""
        if isinstance(message.table, RankTable) and message.table.has_focus:
            self.dashboard.look_at(rank=int(message.key))
