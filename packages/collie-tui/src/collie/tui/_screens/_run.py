"""The second level: one run on the whole screen."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer

from collie.tui._screens._base import RUN_BINDINGS, SnapshotScreen
from collie.tui._source import Snapshot
from collie.tui._widgets import Banner, RunPanel


class RunScreen(SnapshotScreen):
    """The selected run; Esc goes back to all of them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *RUN_BINDINGS,
        Binding("escape", "app.pop_screen", "back", key_display="esc", id="back"),
    ]

    def compose(self) -> ComposeResult:
        """Banner, panel, keys."""
        yield Banner(self.dashboard.host)
        yield RunPanel(id="panel")
        yield Footer(show_command_palette=False)

    def show(self, snapshot: Snapshot, now: float) -> None:
        """Show all parts."""
        self.query_one(Banner).show(snapshot.runs, now, snapshot.problem)
        super().show(snapshot, now)
