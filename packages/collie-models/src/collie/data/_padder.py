"""From rows to a batch: lists of different lengths become one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from collie.data._packing import ROW_LENGTHS
from collie.data._rows import TOKEN_FIELDS
from collie.interfaces import DataError
from collie.module import IGNORE_INDEX

DEFAULT_PADDING: Mapping[str, int] = MappingProxyType({"attention_mask": 0, "labels": IGNORE_INDEX})


class ColliePadder:
    """Collates rows (dicts) into one dict of tensors, each padded to the longest of the batch.

    A field is, by what its rows hold,
        sequences of numbers (lists, arrays, tensors [S] or [S, …]): a tensor [B, S] or [B, S, …], padded along S;
        numbers: a tensor [B];
        anything else (strings, lists of strings, None): the list of them as it came.
    Integers become int64, Python floats float32; arrays and tensors of floats keep their type. A missing
    attention_mask is added with 1 over each row's own length, so that the padding of input_ids (0 unless you say)
    is never attended to. Missing labels stay missing. The fields input_ids, attention_mask and labels of one row
    must have one length.

    Of packs (see PackedDataset) `row_lengths` becomes `cu_seqlens`, int32 [rows + 1]: where rows begin in the flattened
    B·S positions, and B·S. A pack's padding is a row of its own in it, so that every position belongs to one.

    Args:
        padding_token_id: padding value by field; yours override the defaults field by field, and other fields are
            padded by 0.
        padding_left: pad before the row, as generation needs, instead of behind it.
    """

    def __init__(self, padding_token_id: Mapping[str, int] = DEFAULT_PADDING, padding_left: bool = False) -> None:
        self.padding_token_id: dict[str, int] = {**DEFAULT_PADDING, **padding_token_id}
        self.padding_left = padding_left

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of one or more rows. Raises DataError: rows whose fields differ, or lengths that do not fit."""
        rows = _with_attention_mask(_one_set_of_fields(batch))
        if ROW_LENGTHS not in rows[0]:
            return {name: self._field(name, [row[name] for row in rows]) for name in rows[0]}
        packs = [_rows_of_pack(row.pop(ROW_LENGTHS), len(row["input_ids"]), i) for i, row in enumerate(rows)]
        fields = {name: self._field(name, [row[name] for row in rows]) for name in rows[0]}
        return fields | {"cu_seqlens": self._starts(packs)}

    collate_fn = __call__

    def __repr__(self) -> str:
        return f"ColliePadder(padding_token_id={self.padding_token_id}, padding_left={self.padding_left})"

    def _field(self, name: str, values: list[Any]) -> Tensor | list[Any]:
        tensors = [_as_tensor(value) for value in values]
        numeric = [tensor for tensor in tensors if tensor is not None]
        if len(numeric) < len(values) or len({tensor.ndim for tensor in numeric}) > 1:
            if name in TOKEN_FIELDS:
                raise DataError(f"{name} must be a flat list of numbers in each row; got {[_kind(v) for v in values]}.")
            return values
        dtype = _common_dtype(name, numeric)
        if numeric[0].ndim == 0:
            return torch.stack([tensor.to(dtype) for tensor in numeric])
        if len({tensor.shape[1:] for tensor in numeric}) > 1:
            shapes = [tuple(tensor.shape) for tensor in numeric]
            raise DataError(f"{name} has the shapes {shapes}: only the first dimension may differ between rows.")
        return self._padded(numeric, dtype, self.padding_token_id.get(name, 0))

    def _padded(self, tensors: list[Tensor], dtype: torch.dtype, value: int) -> Tensor:
        longest = max(len(tensor) for tensor in tensors)
        out = torch.full((len(tensors), longest, *tensors[0].shape[1:]), value, dtype=dtype)
        for row, tensor in zip(out, tensors, strict=True):
            place = row[longest - len(tensor) :] if self.padding_left else row[: len(tensor)]
            place.copy_(tensor)
        return out

    def _starts(self, packs: list[list[int]]) -> Tensor:
        """cu_seqlens of packs, by the lengths of their rows."""
        length = max(map(sum, packs))  # what all are padded to
        lengths = [0]
        for rows in packs:
            padding = [length - sum(rows)] if sum(rows) < length else []
            lengths += padding + rows if self.padding_left else rows + padding
        return torch.tensor(lengths).cumsum(0).int()


def _rows_of_pack(value: Any, length: int, number: int) -> list[int]:
    lengths = _as_tensor(value)
    if lengths is None or lengths.ndim != 1 or lengths.sum() != length or bool((lengths < 1).any()):
        raise DataError(
            f"{ROW_LENGTHS} of row {number} of the batch is {value!r}: the lengths of its rows, at least 1 each and "
            f"{length} together, are needed."
        )
    rows: list[int] = lengths.tolist()
    return rows


def _one_set_of_fields(batch: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if len(batch) == 0:
        raise DataError("a batch of no rows cannot be padded.")
    for number, row in enumerate(batch):
        if not isinstance(row, Mapping):
            raise DataError(f"row {number} of the batch is a {type(row).__name__}: ColliePadder takes dicts.")
        odd = set(row) ^ set(batch[0])
        if "input_ids" in row:
            odd -= {"attention_mask"}  # where it is missing it is added
        if odd:
            raise DataError(
                f"row {number} of the batch differs from row 0 in the fields {sorted(odd)}: give all rows the same."
            )
    return batch


def _with_attention_mask(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = [dict(row) for row in batch]
    for number, row in enumerate(rows):
        if "input_ids" not in row:
            continue
        if row.get("attention_mask") is None:
            row["attention_mask"] = [1] * len(row["input_ids"])
        lengths = {name: len(row[name]) for name in TOKEN_FIELDS if name in row}
        if len(set(lengths.values())) > 1:
            raise DataError(f"row {number} of the batch has fields of different lengths: {lengths}.")
    return rows


def _as_tensor(value: Any) -> Tensor | None:
    """A tensor of a number or of a (nested) sequence of numbers; None for everything else."""
    if isinstance(value, Tensor):
        tensor = value.detach()
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iubf":
        tensor = torch.from_numpy(np.array(value))  # a copy: the array may be read-only
    elif isinstance(value, bool | int | float | list | tuple):
        try:
            tensor = torch.tensor(value)
        except (ValueError, TypeError, RuntimeError, OverflowError):  # strings, None, rows of different lengths
            return None
    else:
        return None
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def _common_dtype(name: str, tensors: list[Tensor]) -> torch.dtype:
    """The type that holds all rows. An empty list says nothing of its own; a mask of booleans becomes 0 and 1."""
    told = [tensor.dtype for tensor in tensors if tensor.numel()]
    dtype = reduce(torch.promote_types, told) if told else torch.long
    return torch.long if name == "attention_mask" and dtype == torch.bool else dtype


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
