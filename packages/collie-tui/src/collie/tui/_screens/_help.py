"""Keys and states, explained."""

from typing import ClassVar

from rich.table import Table as Grid
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from collie.tui._theme import Roles

_KEYS = (
    ("↑ ↓", "select a run, or a rank; pgup, pgdn, home, end"),
    ("enter esc", "open the run on the whole screen; go back"),
    ("1 … 5", "overview, ranks, log, evaluations, ask the model"),
    ("[ ] e end", "a log: of the previous, the next rank; stdout or stderr; its end"),
    ("tab", "move the focus from pane to pane"),
    ("s", "stop the run, after a question"),
    ("ctrl+p", "all commands, and themes"),
    ("q", "leave; jobs go on"),
)
_STATES = (
    ("◐ starting", "info", "torchrun is starting the ranks"),
    ("● running", "ok", "it makes steps"),
    ("◈ evaluating", "ok", "or ▼ saving, between two steps"),
    ("▲ stalled", "bad", "it has been silent for far longer than its steps take"),
    ("◌ unmanaged", "ok", "no supervisor: a stop can only be asked for"),
    ("◑ stopping", "warn", "a stop was asked for and is under way"),
    ("■ stopped", "warn", "it was stopped, which is no failure"),
    ("✓ finished", "info", "it made all its steps"),
    ("✗ failed", "bad", "the first rank that failed, and why, is told first"),
    ("? lost", "bad", "nobody answers for it; its ranks may go on"),
)


class HelpBox(VerticalScroll, Roles):
    """Two small tables."""

    def compose(self) -> ComposeResult:
        """Keys, then states, then the columns that need a word."""
        yield Static(self._keys(), id="help-keys")
        yield Static(self._states(), id="help-states")
        yield Static(
            self.paint(
                ("TGS ", "accent"),
                ("tokens a GPU a second   ", "dim"),
                ("EVENT ", "accent"),
                ("age of the last event", "dim"),
            )
        )

    def _keys(self) -> Grid:
        grid = Grid.grid(padding=(0, 2))
        for key, told in _KEYS:
            grid.add_row(self.paint((key, "accent")), Text(told))
        return grid

    def _states(self) -> Grid:
        grid = Grid.grid(padding=(0, 2))
        for word, role, told in _STATES:
            grid.add_row(self.paint((word, role)), Text(told))
        return grid


class HelpScreen(ModalScreen[None]):
    """Any of esc, enter, ? and q closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,question_mark,q", "dismiss", "close")]

    def compose(self) -> ComposeResult:
        """One box."""
        box = HelpBox(id="help-box")
        box.border_title = "Help"
        box.border_subtitle = "esc closes"
        yield box
