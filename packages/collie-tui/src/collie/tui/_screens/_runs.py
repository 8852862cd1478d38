"""The first screen: all runs, and the selected one below them."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Footer

from collie.tui._screens._base import RUN_BINDINGS, SnapshotScreen
from collie.tui._source import Snapshot
from collie.tui._widgets import Banner, RankTable, RunPanel, RunTable, Table, Welcome


class RunsScreen(SnapshotScreen):
    """Runs above, the selected run below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "app.open_run", "open", id="open"),
        *RUN_BINDINGS,
        Binding("escape", "view('overview')", "back", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Banner, table, panel, keys; or the three commands."""
        yield Banner(self.dashboard.host)
        with Vertical(id="runs-body"):
            yield RunTable(id="runs")
            yield RunPanel(id="panel")
        yield Welcome(id="welcome")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """The cursor keys move through the runs."""
        self.query_one(Welcome).show(self.dashboard.root)
        self.focus_first()

    def focus_first(self) -> None:
        """The table of runs has the focus."""
        self.query_one(RunTable).focus()

    def show(self, snapshot: Snapshot, now: float) -> None:
        """Show all parts."""
        self.set_class(self.dashboard.has_read and not snapshot.runs and not snapshot.problem, "-empty")
        self.query_one(Banner).show(snapshot.runs, now, snapshot.problem)
        table = self.query_one(RunTable)
        table.styles.height = self._table_height(len(snapshot.runs))
        table.show_runs(snapshot.runs, now, self.dashboard.query_now.run)
        super().show(snapshot, now)

    def _table_height(self, runs: int) -> int:
        """As many lines as there are runs, but never more than the run below can spare."""
        most = max(4, self.size.height // 4) if self.size.height < 60 else 18
        return max(2, min(runs + 1, most))

    def on_table_highlighted(self, message: Table.Highlighted) -> None:
        """The run under the cursor is the selected one."""
        if isinstance(message.table, RankTable):
            super().on_table_highlighted(message)
        else:
            self.dashboard.select(message.key)

    def on_table_chosen(self, message: Table.Chosen) -> None:
        """A double click opens a run."""
        if isinstance(message.table, RunTable):
            self.dashboard.action_open_run()
