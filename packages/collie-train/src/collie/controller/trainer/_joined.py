"""The micro-batches of a step as one batch: what a train_fn gets where the model's layers are dealt to stages."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from collie.data import DEFAULT_PADDING, MicroBatch
from collie.interfaces import DataError
from collie.module import widened

# B rows, S length of input_ids


def joined(micro_batches: list[MicroBatch]) -> MicroBatch:
    """Put the rows of several micro-batches into one; one alone stays as it is, to the last field.

    Fillers, which repeat rows, are left out unless all are such. Of each field,
        tensors [B, …] and lists of B items: row after row. Where a tensor's second dimension is S in each of its
            batches and S differs, rows are padded on the right to the longest as `ColliePadder` pads them: labels by
            -100, others by 0. So are position_ids [B, …, S] along their last dimension.
        cu_seqlens of packs: one after the other, moved by what stands before.
        anything else: kept where all micro-batches have the same.

    Raises:
        DataError: the fields differ, or the values of one cannot be joined.
    """
    counted = [micro_batch for micro_batch in micro_batches if micro_batch.rows] or micro_batches[:1]
    if len(counted) == 1:
        return counted[0]
    batches = [of_all_rows(micro_batch.batch) for micro_batch in counted]
    odd = sorted({key for batch in batches for key in set(batch) ^ set(batches[0])})
    if odd:
        raise DataError(f"{odd[0]} is in some of a step's micro-batches only{_NEED}")
    sizes = [_size(batch, micro_batch.rows) for batch, micro_batch in zip(batches, counted, strict=True)]
    fields = {key: _join(key, [batch[key] for batch in batches], sizes) for key in batches[0] if key != "cu_seqlens"}
    if "cu_seqlens" in batches[0]:
        fields["cu_seqlens"] = _starts(batches)
    return MicroBatch(fields, sum(micro_batch.rows for micro_batch in counted))


def of_all_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """Give each row its own position_ids where one stands for all of them."""
    positions = batch.get("position_ids")
    if "input_ids" in batch and isinstance(positions, Tensor) and positions.dim() > 1 and len(positions) == 1:
        return {**batch, "position_ids": positions.expand(len(batch["input_ids"]), *positions.shape[1:])}
    return batch


_NEED = (
    ", and with pipeline stages train_fn gets the rows of all of them in one batch. Let each be a tensor of one row a "
    "row of input_ids, with the same shape behind it, or the same in each micro-batch; or set "
    "gradient_accumulation_steps to 1."
)


def _size(batch: dict[str, Any], rows: int) -> tuple[int, int | None]:
    """B and S of a micro-batch; S is None where it has no input_ids."""
    ids = batch.get("input_ids")
    return (len(ids), ids.shape[1]) if isinstance(ids, Tensor) and ids.dim() == 2 else (rows, None)


def _join(key: str, values: list[Any], sizes: list[tuple[int, int | None]]) -> Any:
    by_row = [_has_rows(value, rows) for value, (rows, _) in zip(values, sizes, strict=True)]
    if all(by_row) and all(isinstance(value, Tensor) for value in values):
        return _rows_of_tensors(key, values, [length for _, length in sizes])
    if all(by_row) and not any(isinstance(value, Tensor) for value in values):
        return [item for value in values for item in value]
    if all(_same(value, values[0]) for value in values[1:]):
        return values[0]
    said = [tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in values]
    raise DataError(f"{key} differs between a step's micro-batches (it is {_listed(said)}){_NEED}")


def _starts(batches: list[dict[str, Any]]) -> Tensor:
    """cu_seqlens of all packs together, each padded to the longest."""
    shapes = [tuple(batch["input_ids"].shape) for batch in batches]
    longest = max(length for _, length in shapes)
    parts, before = [batches[0]["cu_seqlens"].new_zeros(1)], 0
    for batch, (packs, length) in zip(batches, shapes, strict=True):
        parts.append(widened(batch["cu_seqlens"], (packs, length), (packs, longest))[1:] + before)
        before += packs * longest
    return torch.cat(parts)


def _rows_of_tensors(key: str, values: list[Tensor], lengths: list[int | None]) -> Tensor:
    along = -1 if key == "position_ids" else 1
    shapes = [tuple(value.shape) for value in values]
    follows = all(v.dim() > 1 and v.shape[along] == length for v, length in zip(values, lengths, strict=True))
    if follows:
        longest = max(value.shape[along] for value in values)
        values = [_padded(value, along, longest, DEFAULT_PADDING.get(key, 0)) for value in values]
    if len({value.shape[1:] for value in values}) > 1:
        raise DataError(f"{key} has the shapes {_listed(shapes)} in a step{_NEED}")
    return torch.cat(values)


def _padded(value: Tensor, along: int, length: int, padding: int) -> Tensor:
    behind = value.dim() - 1 - along % value.dim()  # F.pad counts from the last dimension
    return F.pad(value, [0, 0] * behind + [0, length - value.shape[along]], value=padding)


def _has_rows(value: Any, rows: int) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == rows
    return isinstance(value, list | tuple) and len(value) == rows


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        return isinstance(value, Tensor) and isinstance(other, Tensor) and torch.equal(value, other)
    try:
        return bool(value == other)
    except (RuntimeError, ValueError):  # arrays of several elements do not say whether they are equal
        return False


def _listed(values: list[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
