"""Prompts that lie as requests in a run's folder, such as the dashboard's; their answers are events of the run."""

import contextlib
import time
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from collie.events import Prompt, Request, RunFolder
from collie.interfaces import DataError, RunContext
from collie.utils.data_provider._base import BaseProvider
from collie.utils.data_provider._options import asked_config
from collie.utils.data_provider._question import Question
from collie.utils.data_provider._text import TextStream, encode_prompt

_POLL_SECONDS = 0.5  # how often the folder is looked at: it may lie on a network
_SAY_SECONDS = 0.25  # how often a growing answer is written down
_ROLES = ("system", "user", "assistant")


class RunFolderProvider(BaseProvider):
    """Answers what `RunFolder.request("prompt", text=…)` asks, by `prompt` events; a Trainer with a tokenizer has one.

    A request carries `text`, which the model goes on from, or `messages` ({"role", "content"} each), which the
    tokenizer's chat template writes, and any of max_new_tokens, temperature, top_p, top_k and do_sample.
    `RunFolder.request("cancel", request=ID)` ends an answer. What a request holds is data of somebody else: it is
    checked, and answered with a sentence where it is not what it should be. Each is taken once, and removed then.

    Args:
        tokenizer: writes prompts as tokens and answers as text.
        generation_config: how to generate; None means as the model's own says, with at most 256 new tokens.
    """

    def __init__(self, tokenizer: Any, generation_config: GenerationConfig | None = None) -> None:
        super().__init__(stream=True, generation_config=generation_config)
        self.tokenizer = tokenizer
        self._context: RunContext | None = None
        self._run: RunFolder | None = None
        self._known: dict[str, Question] = {}  # those that wait or are being answered, by the request's id
        self._next_poll = 0.0

    def bind(self, context: RunContext) -> None:
        """Take the run whose requests are answered; a run without a folder has none."""
        self._context = context
        self._run = RunFolder(Path(context.folder)) if context.folder is not None else None

    def start_provider(self) -> None:
        """Nothing to start: the folder is looked at between steps, and between tokens."""
        self._closed = False

    def get_data(self) -> Any:
        """Return the next prompt's tokens; None, at once, where there is none."""
        self._look()
        return super().get_data()

    def cancelled(self) -> bool:
        """Whether the answer under way is no longer wanted."""
        self._look()
        return super().cancelled()

    def _look(self) -> None:
        """Take what was asked since the last look, which is not long ago."""
        if self._run is None or time.monotonic() < self._next_poll:
            return
        self._next_poll = time.monotonic() + _POLL_SECONDS
        self._known = {name: one for name, one in self._known.items() if not one.ended}
        with contextlib.suppress(OSError):  # no folder is worth a training
            for request in self._run.pending():
                if request.kind == "prompt":
                    self._run.resolve(request.id)
                    self._take(request)
                elif request.kind == "cancel":
                    self._run.resolve(request.id)
                    meant = self._known.get(str(request.arguments.get("request")))
                    if meant is not None:
                        meant.cancel()

    def _take(self, request: Request) -> None:
        assert self._context is not None
        question = _Asked(request.id, self._context, TextStream(self.tokenizer))
        try:
            given = dict(request.arguments)
            prompt = _prompt_of(given)
            question.generation_config = asked_config(self.generation_config, given)
            question.input_ids = encode_prompt(self.tokenizer, prompt)
        except Exception as error:  # such as a chat template that refuses the order of roles
            question.end(str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}")
            return
        self._known[request.id] = question
        self.enqueue(question)


class _Asked(Question):
    """A request, whose answer is written down a few times a second as it grows."""

    def __init__(self, request: str, context: RunContext, text: TextStream) -> None:
        super().__init__([])
        self._request, self._context, self._text = request, context, text
        self._began: float | None = None
        self._tokens = 0
        self._unsaid = ""
        self._next_say = 0.0

    def put(self, ids: list[int]) -> None:
        self._began = self._began if self._began is not None else time.monotonic()
        self._tokens += len(ids)
        self._unsaid += self._text.add(ids)
        if self._unsaid and time.monotonic() >= self._next_say:
            self._next_say = time.monotonic() + _SAY_SECONDS
            self._say(Prompt(self._request, self._unsaid, done=False))
            self._unsaid = ""

    def end(self, error: str | None = None) -> None:
        seconds = time.monotonic() - self._began if self._began is not None else 0.0
        last = self._unsaid + self._text.end()
        super().end(error)
        self._say(Prompt(self._request, last, True, error=error or "", tokens=self._tokens, seconds=seconds))

    def _say(self, event: Prompt) -> None:
        self._context.events.write(event, step=self._context.step())


def _prompt_of(given: dict[str, Any]) -> str | list[dict[str, str]]:
    """Take the prompt out of a request's arguments.

    Raises:
        DataError: there is none, or it is not what it should be.
    """
    text, messages = given.pop("text", None), given.pop("messages", None)
    if (text is None) == (messages is None):
        raise DataError("a prompt has either text or messages.")
    if messages is None:
        if not isinstance(text, str) or not text:
            raise DataError("a prompt's text is a string, and not an empty one.")
        return text
    if not isinstance(messages, list) or not messages or not all(_is_message(one) for one in messages):
        raise DataError(
            f"a prompt's messages are a list of {{role, content}}, with a role of {', '.join(_ROLES)} and a text each."
        )
    return [{"role": one["role"], "content": one["content"]} for one in messages]


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and one.get("role") in _ROLES and isinstance(one.get("content"), str)
