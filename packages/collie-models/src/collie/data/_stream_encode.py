"""From the rows of a stream to tokens, by the same keys as in a dataset that is made as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collie.data._encode import TextEncoder
from collie.data._rows import (
    TOKEN_FIELDS,
    Encoded,
    Refused,
    Tokens,
    check_target,
    has_target,
    is_sequence,
    row_kind,
    token_row,
)
from collie.interfaces import DataError


class RowEncoder:
    """Makes tokens of rows with "text", "input" and "output", or "input_ids".

    tokenizer: None where rows have input_ids. max_length: tokens a row is cut to; -1 for no limit.
    """

    def __init__(self, tokenizer: Any, add_special_tokens: bool, max_length: int) -> None:
        if max_length != -1 and max_length < 2:
            raise DataError(f"max_length={max_length} leaves no token to predict: give at least 2, or -1 for no limit.")
        self.max_length = max_length
        self._texts = TextEncoder(tokenizer, add_special_tokens) if tokenizer is not None else None

    def encode(self, rows: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[Encoded | Refused]:
        """For each row, in order, its tokens, or why it has none."""
        return [self._one(row, index) for row, index in zip(rows, indices, strict=True)]

    def _one(self, row: Mapping[str, Any], index: int) -> Encoded | Refused:
        try:
            kind = row_kind(row, index)
            if kind == "input_ids":
                tokens, extra = token_row(row, index), {name: row[name] for name in row if name not in TOKEN_FIELDS}
            else:
                tokens, extra = self._tokenised(row, kind, index), {}
            return self._fitted(tokens, extra, index)
        except DataError as error:
            return Refused(index, str(error))

    def _tokenised(self, row: Mapping[str, Any], kind: str, index: int) -> Tokens:
        if self._texts is None:
            raise DataError(f"row {index} is text (it has {sorted(row)}) and there is no tokenizer: give one.")
        [tokens] = self._texts.encode([row], kind, [index])
        return tokens

    def _fitted(self, tokens: Tokens, extra: dict[str, Any], index: int) -> Encoded:
        uncut = len(tokens.input_ids)
        if 0 <= self.max_length < uncut:
            extra = {
                name: value[: self.max_length] if is_sequence(value, uncut) else value for name, value in extra.items()
            }
            lost = has_target(tokens.labels[self.max_length - 1 :])
            tokens = tokens.cut(self.max_length)
        else:
            lost = False
        check_target(tokens, index, uncut=uncut)
        return Encoded(tokens, extra, uncut, inside_turn=lost)
