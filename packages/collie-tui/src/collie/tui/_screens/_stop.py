"""The question before a stop: what it costs, and how."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from collie.jobs import Means, State, Summary
from collie.tui._words import state_piece


class StopScreen(ModalScreen[Means | None]):
    """Answers with the means to stop a run, None for none."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "answer('')", "keep it running"),
        Binding("s", "answer('step')", "stop after this step"),
        Binding("t", "answer('term')", "TERM"),
        Binding("k", "answer('kill')", "kill"),
        Binding("left", "app.focus_previous", show=False),
        Binding("right", "app.focus_next", show=False),
    ]

    def __init__(self, run: Summary, cost: str) -> None:
        super().__init__()
        self._run = run
        self._cost = cost
        self._stopping = run.status.state is State.STOPPING
        self._supervised = run.status.managed and run.status.live

    def compose(self) -> ComposeResult:
        """Question, cost, answers."""
        with Vertical(id="stop-box") as box:
            box.border_title = f"Stop {self._run.name}?"
            yield Static(self._state(), id="stop-state", markup=False)
            yield Static(self._cost, id="stop-cost", markup=False)
            if not self._supervised:
                yield Static(
                    "It has no supervisor: it can be asked to stop after its step, and not be made to.", markup=False
                )
            with Horizontal(id="stop-answers"):
                yield Button("Keep running", id="keep", compact=True)
                if not self._stopping:
                    yield Button("Stop after this step (s)", id="step", variant="warning", compact=True)
                elif self._supervised:
                    yield Button("End it now (t)", id="term", variant="warning", compact=True)
                if self._supervised:
                    yield Button("Kill (k)", id="kill", variant="error", compact=True)

    def _state(self) -> str:
        glyph, _ = state_piece(self._run)
        told = f" · {self._run.status.message}" if self._run.status.message else ""
        return f"{glyph}{told}"

    def on_mount(self) -> None:
        """Enter alone stops nothing."""
        self.query_one("#keep", Button).focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """A button is its answer."""
        self.action_answer("" if event.button.id == "keep" else str(event.button.id))

    def action_answer(self, means: str) -> None:
        """Answer, if this answer is offered."""
        if not means:
            self.dismiss(None)
        elif self.query(f"#{means}"):
            self.dismiss(Means(means))
