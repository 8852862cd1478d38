"""The lines of numbers about the selected run."""

from rich.text import Text
from textual.widgets import Static

from collie.jobs import RunView
from collie.tui._theme import Roles
from collie.tui._words import fact_lines


class Facts(Static, Roles):
    """Outcome, numbers, ranks, ages: a line each."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._text = Text()

    def show(self, view: RunView | None, now: float) -> None:
        """Show the facts of a run; repaint only if a word changed."""
        text = Text("\n").join(self.paint(*line) for line in fact_lines(view, now)) if view is not None else Text()
        if text != self._text or text.spans != self._text.spans:
            self._text = text
            self.update(text)
