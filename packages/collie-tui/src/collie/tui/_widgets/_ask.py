"""Prompts to the model in training, and its answers as they come."""

from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Static

from collie.jobs import Answer, RunView, format_duration
from collie.tui._theme import Roles
from collie.tui._words import Piece


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked from here. problem: why it could not be."""

    run: str
    request: str
    text: str
    problem: str = ""


class Conversation(Static, Roles):
    """Questions with their answers, the oldest first."""

    def write(self, asked: tuple[Question, ...], answers: tuple[Answer, ...], live: bool) -> None:
        """Show what was asked from here and elsewhere."""
        texts = {one.request: one for one in asked}
        known = {answer.request: answer for answer in answers}
        pieces: list[Piece] = []
        for request in dict.fromkeys([*known, *texts]):
            question, answer = texts.get(request), known.get(request)
            asked_here = question.text if question is not None else "(asked elsewhere)"
            pieces += [("> ", "accent"), (asked_here, "" if question is not None else "dim"), ("\n", "")]
            pieces += _answered(question, answer, live)
            pieces.append(("\n\n", ""))
        self.update(self.paint(*pieces[:-1]) if pieces else self.paint((_invitation(live), "dim")))


def _invitation(live: bool) -> str:
    return "Ask the model what it has learnt so far." if live else "The run has ended: nobody answers."


def _answered(question: Question | None, answer: Answer | None, live: bool) -> list[Piece]:
    if question is not None and question.problem:
        return [(question.problem, "bad")]
    if answer is None:
        return [("waiting for the end of a step …" if live else "the run ended before it answered", "dim")]
    pieces: list[Piece] = [(answer.text, "strong")]
    if answer.error:
        pieces += [("\n" if answer.text else "", ""), (answer.error, "bad")]
    elif answer.done:
        at = "before the first step" if not answer.step else f"at step {answer.step}"
        cost = f"{answer.tokens} tokens, {format_duration(answer.seconds)}" if answer.tokens is not None else ""
        pieces.append((f"\n{at}{'  ' if cost else ''}{cost}", "dim"))
    else:
        pieces.append((" …", "accent"))
    return pieces


class AskPane(Vertical):
    """A conversation above, a line to write below."""

    class Asked(Message):
        """Somebody wants to know something of the run."""

        def __init__(self, run: str, text: str) -> None:
            super().__init__()
            self.run = run
            self.text = text

    class Cancelled(Message):
        """An answer is wanted no more."""

        def __init__(self, run: str, request: str) -> None:
            super().__init__()
            self.run = run
            self.request = request

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+g", "cancel", "cancel answer", id="cancel")]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._run = ""
        self._open: str | None = None  # the last question of ours that has no whole answer yet
        self._shown: object = None

    def compose(self) -> ComposeResult:
        """What was said, and the line."""
        with VerticalScroll(id="conversation", can_focus=True):
            yield Conversation(id="conversation-text")
        yield Input(placeholder="ask, and press enter", id="question")

    def show(self, view: RunView | None, asked: tuple[Question, ...]) -> None:
        """Show a run's prompts and answers."""
        run = view.summary.id if view is not None else ""
        live = view is not None and view.summary.status.live
        mine = tuple(question for question in asked if question.run == run)
        shown = (run, mine, view.answers if view is not None else (), live, self.app.theme)
        if shown == self._shown:
            return
        self._shown, self._run = shown, run
        whole = {answer.request for answer in (view.answers if view is not None else ()) if answer.done}
        waiting = [one.request for one in mine if not one.problem and one.request not in whole]
        self._open = waiting[-1] if waiting and live else None
        self.refresh_bindings()
        self.query_one(Conversation).write(mine, view.answers if view is not None else (), live)
        self.query_one(Input).disabled = not live
        self.query_one("#conversation", VerticalScroll).scroll_end(animate=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Without an open answer there is none to cancel."""
        return self._open is not None if action == "cancel" else True

    def action_cancel(self) -> None:
        """Take the last question back, or end its answer."""
        if self._open is not None:
            self.post_message(self.Cancelled(self._run, self._open))

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Pass the question on, and make room for the next."""
        message.stop()
        if self._run and message.value.strip():
            self.post_message(self.Asked(self._run, message.value))
            message.input.value = ""
