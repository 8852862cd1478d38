"""The page itself: a conversation, how to answer, and what came of it."""

import asyncio
import html
import queue
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import gradio

from collie.utils.data_provider._options import NEW_TOKENS
from collie.utils.data_provider._question import Question
from collie.utils.data_provider._text import TextStream

_POLL_SECONDS = 0.05  # how often a conversation looks for its next piece
_CSS = """
.gradio-container { max-width: 860px !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 0; } #title p { margin-top: .25rem; opacity: .75; }
#status { min-height: 1.5rem; } #status p { font-size: .875rem; margin: 0; opacity: .75; }
#conversation .message * { white-space: pre-wrap; overflow-wrap: anywhere; }
footer { display: none !important; }
"""

Message = dict[str, Any]


@dataclass(frozen=True)
class Asking:
    """What the page asks with: everything that it knows of the model.

    Attributes:
        tokenizer: makes text of tokens.
        ask: (messages, options) → the question, whose answer comes by it; raises DataError.
        ahead: how many are answered before a question.
        step: the step that the model has reached.
        converses: whether the model sees the whole conversation, by a chat template, or the last message alone.
        name: the run's.
    """

    tokenizer: Any
    ask: Callable[[list[dict[str, str]], dict[str, Any]], Question]
    ahead: Callable[[Question], int]
    step: Callable[[], int]
    converses: bool
    name: str


def theme() -> Any:
    """A look without fonts that would come from elsewhere."""
    fonts = ["system-ui", "Noto Sans", "Noto Sans CJK SC", "sans-serif"]
    return gradio.themes.Soft(
        primary_hue="emerald", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )


def css() -> str:
    return _CSS


def page(asking: Asking) -> Any:
    """Return the page, a gradio.Blocks; `mount_gradio_app` takes `theme` and `css`."""
    sessions = _Sessions(asking)
    kind = (
        "It sees the whole conversation." if asking.converses else "It goes on from your text; it has no chat template."
    )
    with gradio.Blocks(title=f"CoLLiE · {asking.name}", analytics_enabled=False) as blocks:
        gradio.Markdown(
            f"# {asking.name}\n\nA model in training, which answers between two steps. {kind}", elem_id="title"
        )
        talk = gradio.Chatbot(
            label="Conversation", show_label=False, height="56vh", elem_id="conversation", buttons=[],
            render_markdown=False, sanitize_html=True, feedback_options=None, allow_file_downloads=False,
            layout="bubble", placeholder="Ask the model something.",
        )  # fmt: skip
        status = gradio.Markdown("", elem_id="status")
        with gradio.Row(equal_height=True):
            text = gradio.Textbox(
                show_label=False, placeholder="Your prompt; Enter sends it, Shift+Enter begins a line.", lines=1,
                max_lines=8, scale=8, autofocus=True, container=False, elem_id="prompt",
            )  # fmt: skip
            send = gradio.Button("Send", variant="primary", scale=1, min_width=90, elem_id="send")
            stop = gradio.Button("Stop", variant="stop", scale=1, min_width=90, visible=False, elem_id="stop")
        with gradio.Accordion("How to answer", open=False):
            with gradio.Row():
                longest = gradio.Slider(1, 4096, NEW_TOKENS, step=1, label="At most so many tokens")
                heat = gradio.Slider(0, 2, 0.7, step=0.05, label="Temperature", info="0 takes the likeliest token")
            clear = gradio.Button("New conversation", size="sm")
        shown = [text, talk, status, send, stop]
        gradio.on(
            [text.submit, send.click], sessions.answer, [text, talk, longest, heat], shown, api_name="answer",
            concurrency_limit=None, show_progress="hidden",
        )  # fmt: skip
        stop.click(sessions.cancel, None, None, queue=False, api_name="cancel", show_progress="hidden")
        clear.click(lambda: ([], ""), None, [talk, status], queue=False, api_visibility="private")
        blocks.unload(sessions.cancel)
    return blocks


class _Sessions:
    """What is being answered in each open page."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._open: dict[str, Question] = {}  # by session

    def cancel(self, request: gradio.Request) -> None:
        """End what this page waits for."""
        question = self._open.get(str(request.session_hash))
        if question is not None:
            question.cancel()

    async def answer(
        self, text: str, talk: list[Message], longest: float, heat: float, request: gradio.Request
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Yield the page's parts as the answer grows: text, conversation, status, and which button there is."""
        if not text or not text.strip():
            yield gradio.skip(), talk, "Write a prompt first.", gradio.skip(), gradio.skip()
            return
        session = str(request.session_hash)
        if session in self._open:
            yield gradio.skip(), talk, "Wait for the answer, or stop it.", gradio.skip(), gradio.skip()
            return
        before, talk = talk, [*talk, {"role": "user", "content": _shown(text)}]
        options = {"max_new_tokens": int(longest), "temperature": float(heat)}
        try:
            question = self._asking.ask([_plain(message) for message in talk], options)
        except Exception as error:  # such as a chat template that refuses the order of roles
            yield text, before, _as_status(error), *_buttons(busy=False)
            return
        self._open[session] = question
        try:
            yield "", talk, self._place(question), *_buttons(busy=True)
            written = status = ""
            async for written, status in self._grow(question):
                told = [*talk, {"role": "assistant", "content": _shown(written)}] if written else talk
                yield gradio.skip(), told, status, *_buttons(busy=True)
            if written:
                yield gradio.skip(), told, status, *_buttons(busy=False)
            else:  # roles stay in turn, and the prompt can be mended
                yield text, before, status, *_buttons(busy=False)
        finally:
            question.cancel()  # where the page was left; of no effect on what has ended
            self._open.pop(session, None)

    async def _grow(self, question: Question) -> AsyncIterator[tuple[str, str]]:
        """Yield the text so far and a line about it, whenever there is more of either, and at last the whole."""
        stream, written, tokens, began = TextStream(self._asking.tokenizer), "", 0, time.monotonic()
        first: float | None = None
        status = ""
        while True:
            try:
                piece = question.get(timeout=0)
            except queue.Empty:
                now = "Answering …" if tokens else self._place(question)
                if now != status:
                    status = now
                    yield written, status
                await asyncio.sleep(_POLL_SECONDS)
                continue
            if piece is None:
                break
            first = first if first is not None else time.monotonic()
            tokens += len(piece)
            more = stream.add(piece)
            written += more
            if more:
                status = "Answering …"
                yield written, status
        seconds = time.monotonic() - (first if first is not None else began)
        yield written + stream.end(), self._end(question, tokens, seconds)

    def _place(self, question: Question) -> str:
        ahead = self._asking.ahead(question)
        if ahead:
            return f"{ahead} {'prompt is' if ahead == 1 else 'prompts are'} answered before yours …"
        return f"Waiting for the end of the step (now {self._asking.step() + 1}) …"

    def _end(self, question: Question, tokens: int, seconds: float) -> str:
        if question.error is not None:
            return _as_status(question.error)
        what = "Stopped" if question.cancelled else "Answered"
        return f"{what} at step {self._asking.step()} · {tokens} tokens · {seconds:.1f} s"


def _as_status(error: object) -> str:
    return f"⚠ Not answered: {error}"


def _buttons(busy: bool) -> tuple[Any, Any]:
    return gradio.update(visible=not busy), gradio.update(visible=busy)


def _shown(text: str) -> str:
    """Text as a Chatbot shows it as it is: one without Markdown still takes tags for markup."""
    return html.escape(text, quote=False)


def _plain(message: Message) -> dict[str, str]:
    """A message of the conversation with its text as it was; a Chatbot gives back the shown one, in parts."""
    content = message["content"]
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")
    return {"role": str(message["role"]), "content": html.unescape(content)}
