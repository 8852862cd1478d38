"""From a source's rows, whatever their format, to tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from collie.data._chat import ChatEncoder
from collie.data._encode import TextEncoder
from collie.data._formats import PROCESSED, Example, Formats
from collie.data._rows import TOKEN_FIELDS, Encoded, Refused, fitted, token_row
from collie.data._tokenise import Encoder
from collie.interfaces import DataError

_CHUNK = 1024  # rows handed to the tokenizer at once
_VERSION = 1  # of what a format makes of a row: raised with it, so that no older cache is read


class TokensEncoder:
    """Takes rows that are tokens already, with the other fields that they carry.

    max_length: tokens a row is cut to; -1 for no limit.
    """

    def __init__(self, max_length: int = -1) -> None:
        self.max_length = max_length

    def fingerprint(self) -> str:
        """Changes with max_length."""
        return f"tokens {self.max_length}"

    def encode(self, rows: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[Encoded | Refused]:
        """The rows' tokens, in order."""
        return [self._one(row, index) for row, index in zip(rows, indices, strict=True)]

    def _one(self, row: Mapping[str, Any], index: int) -> Encoded | Refused:
        try:
            tokens = token_row(row, index)
        except DataError as error:
            return Refused(index, str(error))
        extra = {name: row[name] for name in row if name not in TOKEN_FIELDS}
        return fitted(tokens, index, self.max_length, extra=extra)


@dataclass(frozen=True, slots=True)
class Lacking:
    """In place of an encoder that cannot be made: what its rows are, and what is missing."""

    rows: str
    reason: str

    def refused(self, row: Mapping[str, Any], index: int) -> Refused:
        return Refused(index, f"row {index} is {self.rows} (it has {sorted(map(str, row))}) and {self.reason}")


class RowEncoder:
    """The encoder of a source: finds each row's format, and hands what the format makes of it to the encoder of that.

    Args:
        formats: which formats the rows may have.
        encoders: the encoder of examples with the field "text", "input", "messages" or "input_ids".
        chat: whether a chat template was asked for, so that questions with answers become turns.
    """

    def __init__(self, formats: Formats, encoders: Mapping[str, Encoder | Lacking], *, chat: bool = False) -> None:
        self.formats = formats
        self.encoders = encoders
        self.chat = chat

    def fingerprint(self) -> str:
        """Changes with the encoders, and with which formats the rows may have."""
        formats = [_VERSION, [format.name for format in self.formats.formats], self.chat]
        # several fields may have one encoder, whose fingerprint reads a vocabulary
        distinct = {id(encoder): encoder for encoder in self.encoders.values() if not isinstance(encoder, Lacking)}
        prints = {key: encoder.fingerprint() for key, encoder in distinct.items()}
        parts = [[field, prints.get(id(encoder))] for field, encoder in sorted(self.encoders.items())]
        return hashlib.sha256(json.dumps([formats, parts]).encode()).hexdigest()

    def encode(self, rows: Sequence[Any], indices: Sequence[int]) -> list[Encoded | Refused]:
        """For each row, in order, its tokens or why it has none; those of one kind reach their encoder together."""
        done: dict[int, Encoded | Refused] = {}
        kinds: dict[str, dict[int, Example]] = {}
        for place, (row, index) in enumerate(zip(rows, indices, strict=True)):
            try:
                example = self.example(row, index)
            except DataError as error:
                done[place] = Refused(index, str(error))
                continue
            kinds.setdefault(next(field for field in self.encoders if field in example), {})[place] = example
        for field, examples in kinds.items():
            encoder, numbers = self.encoders[field], [indices[place] for place in examples]
            if isinstance(encoder, Lacking):
                done.update((place, encoder.refused(rows[place], indices[place])) for place in examples)
            else:
                done.update(zip(examples, encoder.encode(list(examples.values()), numbers), strict=True))
        return [done[place] for place in range(len(rows))]

    def example(self, row: Any, index: int) -> Example:
        """What the format of row `index` makes of it. Raises DataError: no format, or a field that does not fit it."""
        format = self.formats.of(row, index)
        return format.chat(row, index) if self.chat else format.example(row, index)


def encoded_rows(rows: Iterable[Any], encoder: Encoder, start: int = 0) -> Iterator[Encoded | Refused]:
    """The tokens of rows that are read as they are needed, in order; the first has the number `start`."""
    numbered = enumerate(rows, start)
    while chunk := list(islice(numbered, _CHUNK)):
        yield from encoder.encode([row for _, row in chunk], [index for index, _ in chunk])


def training_encoder(
    tokenizer: Any,
    add_special_tokens: bool = True,
    max_length: int = -1,
    *,
    chat_template: str | Path | None = None,
    train_on: Any = "all",
    train_on_end: bool = True,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    format: str | None = None,
    caller: str = "CollieDatasetForTraining",
) -> RowEncoder:
    """What CollieDatasetForTraining makes of rows, for whoever reads them in another way.

    Args: those of the class; `format` is a Source's, `caller` the class that errors name.
    Raises DataError: options that do not fit, or a format that is not known.
    """
    if not isinstance(max_length, int):
        raise DataError(f"max_length={max_length!r}: give a whole number of tokens, or -1 for no limit.")
    if max_length != -1 and max_length < 2:
        raise DataError(f"max_length={max_length} leaves no token to predict: give at least 2, or -1 for no limit.")
    text = (
        TextEncoder(tokenizer, add_special_tokens, max_length)
        if tokenizer is not None
        else Lacking("text", f"there is no tokenizer: {caller}(rows, tokenizer).")
    )
    encoders: dict[str, Encoder | Lacking] = {
        PROCESSED: TokensEncoder(max_length),
        "messages": _chat_encoder(
            tokenizer,
            chat_template,
            caller,
            train_on=train_on,
            max_length=max_length,
            train_on_end=train_on_end,
            chat_template_kwargs=chat_template_kwargs,
        ),
        "text": text,
        "input": text,
    }
    return RowEncoder(Formats(forced=format), encoders, chat=chat_template is not None)


def _chat_encoder(tokenizer: Any, template: str | Path | None, caller: str, **options: Any) -> Encoder | Lacking:
    if tokenizer is None:
        return Lacking("a conversation", f"there is no tokenizer: {caller}(rows, tokenizer).")
    if template is None and getattr(tokenizer, "chat_template", None) is None:
        return Lacking(
            "a conversation", f"the tokenizer has no chat template: {caller}(rows, tokenizer, chat_template=…)."
        )
    try:
        return ChatEncoder(tokenizer, template, **options)
    except DataError as error:
        if template is not None or options["train_on"] != "all":
            raise
        return Lacking("a conversation", str(error))  # of the tokenizer's template, which other rows do not need
