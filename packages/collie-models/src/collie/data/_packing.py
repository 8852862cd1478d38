"""Rows packed into sequences of one length, so that next to nothing of a batch is padding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, overload

import numpy as np
from torch.utils.data import Dataset

from collie.data._best_fit import best_fit
from collie.data._formats import PROCESSED, Formats
from collie.data._rows import TOKEN_FIELDS, check_target, is_sequence, token_row
from collie.interfaces import DataError
from collie.module import IGNORE_INDEX

ROW_LENGTHS = "row_lengths"


@dataclass(frozen=True, slots=True)
class PackingReport:
    """What packing came to: of `rows` rows with `tokens` tokens, `packs` packs of `max_length` positions.

    fill: how much of these positions is tokens, at most 1. longest: the longest row's tokens.
    """

    rows: int
    tokens: int
    packs: int
    max_length: int
    fill: float
    longest: int

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


class PackedDataset(Dataset[Any]):
    """Packs of whole rows, each of at most max_length tokens, by best fit decreasing: the same packs every time.

    A pack is a dict of lists: input_ids, attention_mask and labels of its rows, one after the other; position_ids,
    which begin at 0 in each row; and `row_lengths`, by which ColliePadder makes `cu_seqlens`, so that no row sees
    another. A row's first token is no target, as it is none in a row apart. Loss and gradients of a pack are those of
    its rows.

    What counts rows counts packs: batch sizes, steps, and a loss of your own that is a mean over rows. The packs' order
    is that of their first rows; the loader shuffles packs, and rows stay together from epoch to epoch.

    Args:
        dataset: rows with input_ids, such as a CollieDatasetForTraining. One that has `lengths`, the rows' numbers of
            tokens, is not read for them. Other fields must have a value a token, and follow it.
        max_length: of a pack, in tokens.

    Raises:
        DataError: there are no rows, or one is longer than a pack, is empty or has no input_ids; it is named by its
            index. When a pack is read: a row of it has no target, or a field with no place in a pack.
    """

    def __init__(self, dataset: Any, max_length: int) -> None:
        if max_length < 2:
            raise DataError(f"max_length={max_length} leaves no token to predict: give at least 2.")
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"the dataset is a {type(dataset).__name__}, which has no length or no access by index: its rows "
                f"cannot be put together. Give a list of rows, or a dataset that has both."
            )
        self.dataset = dataset
        self.max_length = max_length
        lengths_N = _lengths(dataset)
        _check_lengths(lengths_N, max_length)
        self._rows_N, ends_P = best_fit(lengths_N, max_length)
        self._ends = np.concatenate(([0], ends_P))  # pack p is rows_N[ends[p]:ends[p + 1]]
        self._order = np.arange(len(ends_P))
        self._tokens_P = np.add.reduceat(lengths_N[self._rows_N], self._ends[:-1])
        self._longest = int(lengths_N.max())

    def __len__(self) -> int:
        return len(self._order)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens in each pack, [packs] int64."""
        tokens_P: np.ndarray = self._tokens_P[self._order]
        return tokens_P

    def rows_of(self, index: int) -> list[int]:
        """The numbers of the rows in pack `index`, as the dataset counts them."""
        pack = self._order[index]
        rows: list[int] = self._rows_N[self._ends[pack] : self._ends[pack + 1]].tolist()
        return rows

    @property
    def report(self) -> PackingReport:
        """How many packs there are, and how full they are."""
        tokens, packs = int(self.lengths.sum()), len(self)
        rows = int(np.diff(self._ends)[self._order].sum())
        fill = tokens / (packs * self.max_length) if packs else 0.0
        return PackingReport(rows, tokens, packs, self.max_length, fill, self._longest)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Self:
        """One pack as a dict of lists; of a slice, a dataset of these packs over the same rows."""
        if isinstance(index, slice):
            part = copy.copy(self)
            part._order = self._order[index]
            return part
        rows = self.rows_of(index)
        return _joined([_row(self.dataset[row], row) for row in rows], rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        said = self.report
        return (
            f"{type(self).__name__}({said.rows} rows in {said.packs} packs of {said.max_length}, {said.fill:.1%} full)"
        )


def _lengths(dataset: Any) -> np.ndarray:
    """The number of tokens of each row, [N]."""
    if not len(dataset):
        raise DataError("the dataset has no rows: nothing can be trained or evaluated on it.")
    known = getattr(dataset, "lengths", None)
    if known is not None:
        return np.asarray(known, dtype=np.int64)
    return np.fromiter((_length(dataset[index], index) for index in range(len(dataset))), np.int64, len(dataset))


def _length(row: Mapping[str, Any], index: int) -> int:
    if Formats().of(row, index).name != PROCESSED:
        raise DataError(
            f"row {index} has the keys {sorted(row)} and no input_ids: make the rows tokens first, with "
            f"CollieDatasetForTraining(rows, tokenizer)."
        )
    return len(row["input_ids"])


def _check_lengths(lengths_N: np.ndarray, max_length: int) -> None:
    """Raise DataError, naming the first of them, for rows that no pack can hold."""
    refusals = (
        (lengths_N > max_length, f"more than a pack of {max_length}: cut rows by the dataset's own max_length,"),
        (lengths_N < 1, "none that could be packed: give it some,"),
    )
    for bad_N, why in refusals:
        if bad_N.any():
            index = int(bad_N.argmax())
            raise DataError(
                f"row {index} has {lengths_N[index]} tokens, {why} or leave it out ({int(bad_N.sum())} of "
                f"{len(bad_N)} rows are such)."
            )


def _row(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A row's fields as a pack holds them: each with a value a token."""
    tokens = token_row(row, index)
    check_target(tokens, index)
    length = len(tokens.input_ids)
    fields: dict[str, Any] = {name: getattr(tokens, name) for name in TOKEN_FIELDS}
    fields["labels"] = [IGNORE_INDEX, *tokens.labels[1:]]
    fields["position_ids"] = range(length)
    for name in row.keys() - set(TOKEN_FIELDS):
        if not is_sequence(row[name], length):
            raise DataError(
                f"row {index} has the field {name!r} with no value a token, which has no place in a pack of several "
                f"rows: leave it out before packing."
            )
        fields[name] = row[name]
    return fields


def _joined(rows: list[dict[str, Any]], indices: list[int]) -> dict[str, Any]:
    for row, index in zip(rows, indices, strict=True):
        if odd := row.keys() ^ rows[0].keys():
            raise DataError(
                f"row {index} differs from row {indices[0]} of its pack in the fields {sorted(odd)}: give all rows "
                f"the same."
            )
    pack: dict[str, Any] = {name: [value for row in rows for value in row[name]] for name in rows[0]}
    return pack | {ROW_LENGTHS: [len(row["input_ids"]) for row in rows]}
