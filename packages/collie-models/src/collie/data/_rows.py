"""What a row is: the token fields of a dict, and the sentences that a row which cannot be used gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collie.interfaces import DataError
from collie.module import IGNORE_INDEX

TOKEN_FIELDS = ("input_ids", "attention_mask", "labels")

_LARGEST_ID = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row: lists of one length. `attention_mask` is 1 where a token counts, `labels` -100 where no target is."""

    input_ids: list[int]
    attention_mask: list[int]
    labels: list[int]

    def cut(self, length: int) -> Tokens:
        """The first `length` positions."""
        return Tokens(self.input_ids[:length], self.attention_mask[:length], self.labels[:length])


def token_row(row: Mapping[str, Any], index: int) -> Tokens:
    """The token fields of a processed row. Without a mask every token counts; without labels each is a target.

    Raises DataError: a field that is no flat list of integers, or fields of different lengths.
    """
    input_ids = _integers(row, "input_ids", index)
    mask = _integers(row, "attention_mask", index) if row.get("attention_mask") is not None else [1] * len(input_ids)
    if row.get("labels") is not None:
        labels = _integers(row, "labels", index)
    else:
        labels = [token if keep else IGNORE_INDEX for token, keep in zip(input_ids, mask, strict=False)]
    for name, values in (("attention_mask", mask), ("labels", labels)):
        if len(values) != len(input_ids):
            raise DataError(
                f"row {index} has {len(input_ids)} input_ids and {len(values)} {name}: one for each token is needed."
            )
    if input_ids and min(input_ids) < 0:
        raise DataError(f"row {index} has the token id {min(input_ids)} in input_ids: token ids are not negative.")
    return Tokens(input_ids, mask, labels)


def _integers(row: Mapping[str, Any], name: str, index: int) -> list[int]:
    value = row[name]
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):  # lists of different lengths; a tensor on a device
        array = np.asarray(None)
    if array.ndim == 1 and not len(array):
        return []
    if array.ndim == 1 and array.dtype.kind in "iub":
        values: list[int] = array.astype(np.int64).tolist()
        if max(values) > _LARGEST_ID or min(values) < -_LARGEST_ID:
            raise DataError(f"row {index} has a value beyond 32 bits in {name}: {max(values, key=abs)}.")
        return values
    found = f"shape {array.shape}" if array.ndim > 1 else f"{type(value).__name__} {str(value)[:40]!r}"
    raise DataError(f"{name} of row {index} is {found}: a flat list of integers, one for each token, is needed.")


def check_text(text: str, what: str) -> None:
    """Raise DataError where `text`, which the error calls `what`, is nothing that a tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} has half of a surrogate pair, {text[error.start]!r}, which is no character: where the text was "
            "cut, a character was cut in two. Mend it, or leave the row out."
        ) from None


def is_sequence(value: Any, length: int) -> bool:
    """Whether a field holds numbers for `length` positions: a list, array or tensor, of whatever further shape."""
    return hasattr(value, "__len__") and len(value) == length and np.asarray(value).dtype.kind in "iubf"


def has_target(labels: Sequence[int]) -> bool:
    """Whether a loss can come from these labels: the loss shifts, so that nothing predicts the first position."""
    predicted = labels[1:]
    return predicted.count(IGNORE_INDEX) < len(predicted)


def check_target(tokens: Tokens, index: int, *, uncut: int | None = None) -> None:
    """Raise DataError unless row `index` has a target token. `uncut`: its length before max_length cut it."""
    if has_target(tokens.labels):
        return
    length = len(tokens.labels)
    if uncut is not None and uncut > length:
        why = f"max_length={length} cut it from {uncut} tokens and left none of its output"
        mend = "raise max_length or shorten its input"
    elif tokens.labels and tokens.labels[0] != IGNORE_INDEX:
        why = f"its only target is its first token of {length}, which no other comes before"
        mend = "give it a longer text, or an input"
    else:
        why = f"all of its {length} labels are {IGNORE_INDEX}" if length else "it is empty"
        mend = "give it an output, or labels other than -100"
    raise DataError(f"row {index} has no target token: {why}. To train on it {mend}; else leave it out.")


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one row.

    tokens: within max_length. extra: the row's other fields, kept as they came. uncut: its tokens before that cut.
    inside_turn: whether the cut fell between two targets, so that an answer has lost its end.
    """

    tokens: Tokens
    extra: Mapping[str, Any]
    uncut: int
    inside_turn: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that cannot be used: its index in its source, and the whole sentence that says why ("row 3 has no …")."""

    index: int
    reason: str


def fitted(
    tokens: Tokens, index: int, max_length: int, *, extra: Mapping[str, Any] | None = None, turns: bool = True
) -> Encoded | Refused:
    """Row `index` within max_length (-1 for no limit), cut from the right; refused where no target is left.

    extra: the row's other fields; those that hold a number for each token are cut with it.
    turns: whether the targets are answers, of which a cut may take the end. A text's are not.
    """
    uncut, extra, inside_turn = len(tokens.input_ids), extra or {}, False
    if 0 <= max_length < uncut:
        inside_turn = turns and IGNORE_INDEX not in tokens.labels[max_length - 1 : max_length + 1]
        tokens = tokens.cut(max_length)
        extra = {name: value[:max_length] if is_sequence(value, uncut) else value for name, value in extra.items()}
    try:
        check_target(tokens, index, uncut=uncut)
    except DataError as error:
        return Refused(index, str(error))
    return Encoded(tokens, extra, uncut, inside_turn)
