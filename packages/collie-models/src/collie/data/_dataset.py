"""The dataset of fine-tuning: rows of text or tokens in, rows of tokens with their labels out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from torch.utils.data import Dataset

from collie.data._encode import TextEncoder
from collie.data._files import read_json_rows
from collie.data._packing import PackedDataset
from collie.data._rows import TOKEN_FIELDS, Tokens, check_target, is_sequence, row_kind, token_row
from collie.data._table import TokenTable
from collie.interfaces import DataError

_CHUNK = 1024  # rows handed to the tokenizer at once


class CollieDatasetForTraining(Dataset[Any]):
    """Rows for training, tokenised once, when it is made.

    A row of `dataset` is a dict with
        "text": every token is a target;
        "input" and "output": the output's tokens are targets (see TextEncoder for how the two are joined);
        "input_ids", and "attention_mask" and "labels" if it has them: taken as it is, with every other field it
        carries.
    Of a row of text nothing but its tokens is kept. `dataset[3]` is {"input_ids", "attention_mask", "labels", …},
    lists of one length, labels -100 where there is no target and not shifted (the loss shifts). `dataset[:32]` is
    a dataset over the same memory.

    Args:
        dataset: any iterable of such rows.
        tokenizer: of transformers; needed where a row is text.
        add_special_tokens: put the tokenizer's leading tokens (bos) before a row, and its eos, a target, behind it.
        shuffle: mix the rows once, by `seed`. (The loader shuffles every epoch; this is for taking a slice.)
        max_length: tokens a row is cut to, from the right; -1 for no limit.

    Raises:
        DataError: a row lacks the keys it needs, needs a tokenizer and has none, or has no target token left; it
            is named by its index. Also where there are no rows.
    """

    def __init__(
        self,
        dataset: Iterable[Mapping[str, Any]],
        tokenizer: Any = None,
        add_special_tokens: bool = True,
        shuffle: bool = False,
        seed: int = 1024,
        max_length: int = -1,
    ) -> None:
        if max_length != -1 and max_length < 2:
            raise DataError(f"max_length={max_length} leaves no token to predict: give at least 2, or -1 for no limit.")
        if isinstance(dataset, str | Path):
            raise DataError(
                f"dataset={str(dataset)!r} is a path: read it with CollieDatasetForTraining.from_json(path, …)."
            )
        self.tokenizer = tokenizer
        self.add_special_tokens = add_special_tokens
        self.max_length = max_length
        self._set_table(TokenTable.from_rows(self._tokenised(dataset)), shuffle, seed)

    @classmethod
    def from_json(
        cls,
        path: str | Path,
        tokenizer: Any = None,
        add_special_tokens: bool = True,
        shuffle: bool = False,
        seed: int = 1024,
        max_length: int = -1,
    ) -> Self:
        """The rows of a JSON file that is a list, or of a file with one JSON object a line.

        Raises DataError naming the file, and the row as the class does.
        """
        rows = read_json_rows(path)
        try:
            return cls(rows, tokenizer, add_special_tokens, shuffle, seed, max_length)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @classmethod
    def from_processed(cls, path: str | Path, shuffle: bool = False, seed: int = 1024) -> Self:
        """The dataset that `save_processed` wrote to the folder `path`: no tokenizer is needed, nothing is executed."""
        self = cls.__new__(cls)
        self.tokenizer, self.add_special_tokens, self.max_length = None, True, -1
        self._set_table(TokenTable.load(Path(path)), shuffle, seed)
        return self

    def save_processed(self, path: str | Path) -> None:
        """Write the tokens, in this dataset's order, to the folder `path` (safetensors), for `from_processed`."""
        self._table.save(Path(path), self._order)

    save_propressed = save_processed  # the name that existing scripts call

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Self:
        """One row as a dict of lists; of a slice, a dataset of this class over the same memory."""
        if isinstance(index, slice):
            part = copy.copy(self)
            part._order = self._order[index]
            return part
        return self._table.row(int(self._order[index]))

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row, [rows] int64."""
        return np.diff(self._table.offsets)[self._order]

    def packed(self, max_length: int) -> PackedDataset:
        """These rows in packs of at most max_length tokens, of which none is longer; see PackedDataset."""
        return PackedDataset(self, max_length)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        tokens = int(np.diff(self._table.offsets)[self._order].sum())
        return f"{type(self).__name__}({len(self)} rows, {tokens} tokens)"

    def _set_table(self, table: TokenTable, shuffle: bool, seed: int) -> None:
        if not len(table):
            raise DataError("the dataset has no rows: nothing can be trained or evaluated on it.")
        self._table = table
        self._order = np.random.default_rng(seed).permutation(len(table)) if shuffle else np.arange(len(table))

    def _tokenised(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Tokens, dict[str, Any]]]:
        encoder = TextEncoder(self.tokenizer, self.add_special_tokens) if self.tokenizer is not None else None
        numbered = enumerate(rows)
        while chunk := dict(islice(numbered, _CHUNK)):
            yield from self._chunk(chunk, encoder)

    def _chunk(
        self, chunk: dict[int, Mapping[str, Any]], encoder: TextEncoder | None
    ) -> Iterator[tuple[Tokens, dict[str, Any]]]:
        """Rows by their index, in order; those of one kind reach the tokenizer together."""
        kinds: dict[str, list[int]] = {}
        for index, row in chunk.items():
            kinds.setdefault(row_kind(row, index), []).append(index)
        processed = set(kinds.pop("input_ids", ()))
        tokens = {index: token_row(chunk[index], index) for index in processed}
        for kind, indices in kinds.items():
            if encoder is None:
                raise DataError(
                    f"row {indices[0]} is text (it has {sorted(chunk[indices[0]])}) and there is no tokenizer: "
                    f"{type(self).__name__}(rows, tokenizer)."
                )
            encoded = encoder.encode([chunk[index] for index in indices], kind, indices)
            tokens.update(zip(indices, encoded, strict=True))
        for index, row in chunk.items():
            extra = {name: row[name] for name in row if name not in TOKEN_FIELDS} if index in processed else {}
            yield self._fitted(tokens[index], extra, index)

    def _fitted(self, tokens: Tokens, extra: dict[str, Any], index: int) -> tuple[Tokens, dict[str, Any]]:
        """The row within max_length; what it carries for each token (position_ids, say) is cut with it."""
        uncut = len(tokens.input_ids)
        if 0 <= self.max_length < uncut:
            tokens = tokens.cut(self.max_length)
            extra = {
                name: value[: self.max_length] if is_sequence(value, uncut) else value for name, value in extra.items()
            }
        check_target(tokens, index, uncut=uncut)
        return tokens, extra
