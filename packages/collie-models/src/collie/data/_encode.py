"""From texts to tokens: input and output apart, their ids joined, the end of the output a target."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from collie.data._rows import Tokens
from collie.interfaces import DataError
from collie.module import IGNORE_INDEX

logger = logging.getLogger(__name__)


class TextEncoder:
    """Turns rows of text into tokens with a transformers tokenizer (or any callable of its kind).

    Input and output are tokenised apart and their ids joined: joined as text, a space at the end of the input
    would merge into the first token of the output, and the model would be trained on a split that generation never
    sees.

    With `add_special_tokens` a row begins with what the tokenizer puts before a text (bos, for most), and ends
    with its eos, which is a target: so the model learns to stop. What else the tokenizer would put behind a text
    is left out.
    """

    def __init__(self, tokenizer: Any, add_special_tokens: bool) -> None:
        self.tokenizer = tokenizer
        self.prefix: list[int] = []
        self.suffix: list[int] = []
        if add_special_tokens:
            self.prefix = _leading_tokens(tokenizer)
            eos = getattr(tokenizer, "eos_token_id", None)
            if eos is None:
                logger.warning(
                    "The tokenizer has no eos_token: nothing marks where an output ends, and generation will not stop."
                )
            else:
                self.suffix = [eos]

    def encode(self, rows: Sequence[Mapping[str, Any]], kind: str, indices: Sequence[int]) -> list[Tokens]:
        """Tokens of rows of one kind, "text" or "input"; `indices` are their numbers, for errors."""
        texts = {
            name: self._ids([_string(row, name, index) for row, index in zip(rows, indices, strict=True)])
            for name in (("text",) if kind == "text" else ("input", "output"))
        }
        if kind == "text":
            return [self._join([], self.prefix + ids) for ids in texts["text"]]
        return [
            self._join(self.prefix + given, ids) for given, ids in zip(texts["input"], texts["output"], strict=True)
        ]

    def _join(self, given: list[int], targets: list[int]) -> Tokens:
        if targets[-1:] != self.suffix:  # a text may bring its own end
            targets = targets + self.suffix
        ids = given + targets
        return Tokens(ids, [1] * len(ids), [IGNORE_INDEX] * len(given) + targets)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Ids of many texts in one call, which fast tokenizers spread over threads."""
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids


def _leading_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: found by comparing one text with and without special tokens."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def _string(row: Mapping[str, Any], name: str, index: int) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise DataError(
            f"{name!r} of row {index} is a {type(value).__name__} ({str(value)[:40]!r}): a string is needed."
        )
    return value
