"""From rows to prompts: what stands before an answer, tokenised as training does it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from collie.data._encode import TextEncoder
from collie.data._formats import FORMATS, Example, Format
from collie.data._rows import TOKEN_FIELDS, Encoded, Refused, Tokens, token_row
from collie.interfaces import DataError
from collie.module import IGNORE_INDEX


class Chat(Protocol):
    """What a chat template makes of conversations; see ChatPrompts."""

    def fingerprint(self) -> str: ...

    def prompt(self, row: Mapping[str, Any]) -> tuple[str, str | None]: ...


class PromptEncoder:
    """Turns examples into prompts: all of {"text"}, "input", or the messages before the last turn of the assistant.

    The answer is no token of the row. It is its field `target`: a text, a list of texts (references), or None.

    Args:
        text: tokenises, and has the tokens that stand before a text. A chat template writes its own.
        chat: renders messages; None where there is no template.
        max_length: the most tokens of a prompt, which is never cut; -1 for no limit.
    """

    def __init__(self, text: TextEncoder, chat: Chat | None, max_length: int) -> None:
        self.text = text
        self.chat = chat
        self.max_length = max_length

    def fingerprint(self) -> str:
        """Changes with everything that a prompt depends on besides the rows."""
        template = self.chat.fingerprint() if self.chat is not None else ""
        parts = ["prompts", self.text.fingerprint(), template, self.max_length]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def encode(self, rows: Sequence[Example], indices: Sequence[int]) -> list[Encoded | Refused]:
        """The prompts, in order; a row whose prompt is empty or longer than max_length is refused."""
        return [
            prompt if isinstance(prompt, Refused) else _as_row(prompt, target)
            for prompt, target in self.prompts(rows, indices)
        ]

    def prompts(self, rows: Sequence[Example], indices: Sequence[int]) -> list[tuple[list[int] | Refused, Any]]:
        """For each row its prompt's tokens, or why there is none, and its target."""
        read = [self._read(row, index) for row, index in zip(rows, indices, strict=True)]
        ids = iter(self.text.ids([text for text, _ in read if isinstance(text, str)]))
        results: list[tuple[list[int] | Refused, Any]] = []
        for (text, target), row, index in zip(read, rows, indices, strict=True):
            if isinstance(text, Refused):
                results.append((text, target))
            else:
                prefix = [] if "messages" in row else self.text.prefix
                prompt = prefix + next(ids)
                results.append((_unfit(len(prompt), self.max_length, index) or prompt, target))
        return results

    def _read(self, row: Example, index: int) -> tuple[str | Refused, Any]:
        if "messages" not in row:
            return row["text"] if "text" in row else row["input"], row.get("target")
        if self.chat is None:
            reason = f"row {index} is a conversation and the tokenizer has no chat template: give chat_template."
            return Refused(index, reason), None
        try:
            text, answer = self.chat.prompt(row)
        except DataError as error:
            return Refused(index, f"row {index}: {error}"), None
        return text, row.get("target", answer)


class TokenPromptEncoder:
    """Takes rows that are tokens already: prompts as a whole, or with an answer where they have labels.

    max_length: the most tokens before the first label that is not -100; -1 for no limit.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def fingerprint(self) -> str:
        """Changes with max_length."""
        return f"token prompts {self.max_length}"

    def encode(self, rows: Sequence[Example], indices: Sequence[int]) -> list[Encoded | Refused]:
        """The rows' tokens, in order, and what else they carry."""
        return [self._one(row, index) for row, index in zip(rows, indices, strict=True)]

    def _one(self, row: Example, index: int) -> Encoded | Refused:
        try:
            tokens = token_row(row, index)
        except DataError as error:
            return Refused(index, str(error))
        if row.get("labels") is None:
            tokens = replace(tokens, labels=[IGNORE_INDEX] * len(tokens.input_ids))
        labels = tokens.labels
        end = next((place for place, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
        refused = _unfit(end, self.max_length, index)
        extra = {name: row[name] for name in row if name not in TOKEN_FIELDS}
        return refused or Encoded(tokens, extra, len(labels))


def _unfit(length: int, max_length: int, index: int) -> Refused | None:
    """Why a prompt of `length` tokens cannot be used, if it cannot."""
    if not length:
        return Refused(index, f"row {index} has an empty prompt: give it an input, or add_special_tokens=True.")
    if 0 <= max_length < length:
        return Refused(
            index,
            f"row {index} has a prompt of {length} tokens, more than max_length={max_length}: raise max_length, "
            "shorten the prompt, or leave the row out.",
        )
    return None


def _as_row(prompt: list[int], target: Any) -> Encoded:
    tokens = Tokens(prompt, [1] * len(prompt), [IGNORE_INDEX] * len(prompt))
    return Encoded(tokens, {"target": target}, len(prompt))


def _asking(example: Callable[[Mapping[str, Any], int], Example]) -> Callable[[Mapping[str, Any], int], Example]:
    """The example without its output, which becomes its target."""

    def asked(row: Mapping[str, Any], index: int) -> Example:
        target = row.get("output")
        texts = target if isinstance(target, list | tuple) else [] if target is None else [target]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"'output' of row {index} is {str(target)[:40]!r}: a string, a list of strings that are all right, or "
                "none is needed."
            )
        question = example({name: value for name, value in row.items() if name != "output"}, index)
        return {**question, "target": target}

    return asked


def _as_prompt(format: Format) -> Format:
    if "output" not in format.columns:
        return format
    return replace(
        format,
        columns=format.columns - {"output"},
        example=_asking(format.example),
        chat=_asking(format.chat),
    )


PROMPTS: tuple[Format, ...] = tuple(map(_as_prompt, FORMATS))
"""The formats of rows to train on; an output may be missing, or be a list of references."""
