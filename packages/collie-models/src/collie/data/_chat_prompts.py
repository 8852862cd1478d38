"""What a chat template writes up to the answer that a model is to give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collie.data._chat_messages import conversation
from collie.data._chat_template import ChatTemplate


class ChatPrompts:
    """Conversations as prompts.

    template, options: as ChatEncoder's chat_template and chat_template_kwargs. Raises DataError as ChatTemplate does.
    """

    def __init__(self, tokenizer: Any, template: str | Path | None, options: Mapping[str, Any] | None) -> None:
        self._options = dict(options or {})
        self._template = ChatTemplate(tokenizer, template, self._options)

    def fingerprint(self) -> str:
        """Changes with the templates and their variables."""
        return json.dumps([self._template.sources(), self._options], sort_keys=True, default=str)

    def prompt(self, row: Mapping[str, Any]) -> tuple[str, str | None]:
        """The text of {"messages", "tools"} with the generation prompt behind it, and what is to be answered.

        A last turn of the assistant is the answer, and not in the text; a turn of nothing but tool calls has none.
        Raises DataError: no conversation, or one that the template does not take.
        """
        talk = conversation(row)
        last = talk.messages[-1]
        answered = last["role"] == "assistant"
        text = self._template.render(talk, len(talk.messages) - answered, prompt=True)
        return text, (last["content"] or None) if answered else None
