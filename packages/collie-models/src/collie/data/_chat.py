"""From conversations to tokens: the chat template's own text, the turns of the assistant its targets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from collie.data._chat_messages import Conversation, TrainOn, conversation
from collie.data._chat_template import ChatTemplate
from collie.data._chat_turns import derived_turns, marked_turns
from collie.data._encode import tokenizer_digest
from collie.data._rows import Encoded, Refused, Tokens, fitted, has_target
from collie.data._token_spans import Span, SpanTokenizer
from collie.interfaces import DataError
from collie.module import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A conversation's text and the spans of characters that its turns are.

    exact: whether the template itself marked them, so that all of them is a target.
    """

    text: str
    turns: list[Span]
    exact: bool

    def edges(self) -> list[Span]:
        """The turns, and behind each the same without the white space at its end."""
        return [
            span
            for start, end in self.turns
            for span in ((start, end), (start, start + len(self.text[start:end].rstrip())))
        ]


class ChatEncoder:
    """Turns rows {"messages": [...], "tools": [...] | None} of OpenAI's form into tokens (an `Encoder`).

    Tokens are those of the text that the tokenizer's chat template writes of the conversation. A turn is a message of
    the assistant. Its targets are what stands in the template's {% generation %}, where it has that block; else all
    that the template writes after the generation prompt, up to and with the token that ends the turn. So:

    - The generation prompt's own text, the empty think block of a prompt that asks for no thoughts included, is
      never a target: an engine gives it to the model.
    - The special tokens that end a turn (<|im_end|>, </s>, <|eot_id|>) are targets up to the tokenizer's eos, or to
      the last of them where eos is none of them; white space that the template writes behind is not: an engine
      has stopped by then. A turn without such an end is a target to its last character.

    Args:
        tokenizer: of transformers. With a slow one, without offsets, rows are refused whose turns begin or end inside
            a token.
        chat_template: Jinja text, the path of a file of it, or the name of one of the tokenizer's templates; None
            for the tokenizer's own.
        train_on: "all" turns, the "last" one, or numbers of turns, from 0 on, negative ones from the end. A message
            that says `"train": false`, or in OpenAI's form `"weight": 0`, is no target whatever is chosen.
        max_length: tokens a row is cut to, from the right; -1 for no limit.
        train_on_end: False leaves the tokens that end a turn out of the targets.
        chat_template_kwargs: further variables of the template, such as {"enable_thinking": False}.

    Raises:
        DataError: an option that does not fit, no template, or one that is no Jinja.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | Path | None = None,
        train_on: Literal["all", "last"] | Sequence[int] = "all",
        max_length: int = -1,
        *,
        train_on_end: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.train_on = _checked_choice(train_on)
        self.max_length = max_length
        self.train_on_end = train_on_end
        self._options = dict(chat_template_kwargs or {})
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, chat_template, self._options)
        self._spans = SpanTokenizer(tokenizer)
        self._eos = getattr(tokenizer, "eos_token_id", None)
        self.stops = special_ids(tokenizer)

    def fingerprint(self) -> str:
        """A digest of what the tokens depend on besides the rows."""
        parts = [
            "chat 1",
            tokenizer_digest(self._tokenizer),
            dict(self._tokenizer.special_tokens_map),
            self._template.sources(),
            self._options,
            self.train_on,
            self.train_on_end,
            self.max_length,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def encode(self, rows: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[Encoded | Refused]:
        """What becomes of each row, in order. `indices`: the rows' numbers in their source.

        A row is refused with a sentence that says why, which may be the template's own.
        """
        rendered = [self._rendered(row) for row in rows]
        good = [one for one in rendered if isinstance(one, _Rendered)]
        tokens = iter(self._spans.tokens([one.text for one in good], [one.edges() for one in good]))
        return [
            self._labelled(one, next(tokens), index) if isinstance(one, _Rendered) else _refused(one, index)
            for index, one in zip(indices, rendered, strict=True)
        ]

    def _rendered(self, row: Mapping[str, Any]) -> _Rendered | str:
        """The row's text and where its targets are, or why there is none."""
        try:
            talk = conversation(row)
            chosen = talk.chosen(self.train_on)
            text = self._template.render(talk)
            _check_nothing_is_left_out(talk, text)
            marked = marked_turns(self._template, talk, text, chosen)
            if marked is not None:
                return _Rendered(text, marked, exact=True)
            return _Rendered(text, derived_turns(self._template, talk, text, chosen), exact=False)
        except DataError as error:
            return str(error)

    def _labelled(
        self, rendered: _Rendered, found: tuple[list[int], list[Span]] | str, index: int
    ) -> Encoded | Refused:
        """`found`: the ids, and for each of the edges its span of tokens; or why they cannot be told."""
        if isinstance(found, str):
            return _refused(found, index)
        ids, edges = found
        labels = [IGNORE_INDEX] * len(ids)
        for (start, end), (_, stripped) in zip(edges[::2], edges[1::2], strict=True):
            end = self._last(ids, start, end, stripped, rendered.exact)
            labels[start:end] = ids[start:end]
        return self._cut(Tokens(ids, [1] * len(ids), labels), index)

    def _last(self, ids: list[int], start: int, end: int, stripped: int, exact: bool) -> int:
        """Where the targets end of a turn start:end, whose tokens from `stripped` on are white space."""
        first_stop = stripped
        while first_stop > start and ids[first_stop - 1] in self.stops:
            first_stop -= 1
        if first_stop == stripped:
            return end
        if not self.train_on_end:
            return first_stop
        if exact:
            return end
        ending = ids[first_stop:stripped]
        return first_stop + ending.index(self._eos) + 1 if self._eos in ending else stripped

    def _cut(self, whole: Tokens, index: int) -> Encoded | Refused:
        if not has_target(whole.labels):
            return _refused("the chat template writes nothing for the turns that train_on chooses.", index)
        first = next(place for place, label in enumerate(whole.labels) if label != IGNORE_INDEX)
        if 0 <= self.max_length <= first:
            return _refused(
                f"max_length={self.max_length} cuts it from {len(whole.input_ids)} tokens, and its first trained turn "
                f"begins at token {first}: raise max_length or shorten the row.",
                index,
            )
        return fitted(whole, index, self.max_length)


def _refused(reason: str, index: int) -> Refused:
    return Refused(index, f"row {index}: {reason}")


def _check_nothing_is_left_out(talk: Conversation, text: str) -> None:
    """Raise DataError where the template does not write what the row holds."""
    for number, message in enumerate(talk.messages):
        if message["role"] in ("system", "developer", "user") and message["content"].strip() not in text:
            raise DataError(
                f"the chat template leaves out its message {number}, of the role {message['role']!r}: put that "
                "text into another message, or give a chat_template that writes it."
            )
        for call in message.get("tool_calls", ()):
            if call["function"]["name"] not in text:
                raise DataError(f"the chat template does not write tool calls, which message {number} has.")
    for tool in talk.tools or ():
        name = tool.get("function", tool).get("name")
        if isinstance(name, str) and name not in text:
            raise DataError(f"the chat template does not write tools: {name!r} is not in its text.")
    reasoning = talk.messages[-1].get("reasoning_content")  # that of earlier turns is left out by design
    if isinstance(reasoning, str) and reasoning.strip() not in text:
        raise DataError("the chat template does not write the reasoning_content of its last turn.")


def _checked_choice(train_on: Literal["all", "last"] | Sequence[int]) -> TrainOn:
    if isinstance(train_on, str):
        if train_on == "all" or train_on == "last":
            return train_on
    elif isinstance(train_on, Sequence):
        turns: tuple[Any, ...] = tuple(train_on)
        if turns and all(isinstance(turn, int) and not isinstance(turn, bool) for turn in turns):
            return turns
    raise DataError(f"train_on={train_on!r} is neither 'all' nor 'last' nor a list of turns such as [0, -1].")


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that are no text: those which the tokenizer holds special, its eos among them."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {number for number, token in added.items() if token.special}
    return frozenset(special | set(getattr(tokenizer, "all_special_ids", ())))
