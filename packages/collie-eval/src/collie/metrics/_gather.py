"""Rows of one result, brought together from all data-parallel ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(result: Mapping[str, Any], group: dist.ProcessGroup | None) -> dict[str, Any]:
    """Join the rows of `result` over the ranks of `group`, in rank order; every rank gets all of them.

    Args:
        result: what an `eval_fn` returned. Tensors are rows along their first dimension (a 0-d tensor is one row),
            lists are rows, any other value is one row.
        group: the data-parallel group; None where there is one rank, and `result` comes back as it is.

    Returns:
        For each key, tensors of equal trailing shape joined along the first dimension ([rows of all ranks, …]), tensors
        of different trailing shapes as a list of row tensors, everything else as a list. A key that some ranks do not
        have holds the rows of the others. Tensors are on the device of this rank's own.
    """
    if group is None:
        return dict(result)
    mine = {key: _portable(value) for key, value in result.items()}
    everyone: list[dict[str, Any] | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    parts = [part for part in everyone if part is not None]
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: _join([part[key] for part in parts if key in part], result.get(key)) for key in keys}


def without_rows(result: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys with no row in them: what a filler batch brings to a gather. Values without rows are left out."""
    empty: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, Tensor):
            empty[key] = _rows(value)[:0]
        elif isinstance(value, list | tuple):
            empty[key] = []
    return empty


def _rows(value: Tensor) -> Tensor:
    return value.reshape(1) if value.dim() == 0 else value


def _portable(value: Any) -> Tensor | list[Any]:
    """Rows on the CPU, holding nothing but themselves (a view would be sent with its whole storage)."""
    if isinstance(value, Tensor):
        return _rows(value.detach()).cpu().clone()
    if isinstance(value, list | tuple):
        return [item.detach().cpu().clone() if isinstance(item, Tensor) else item for item in value]
    return [value]


def _join(parts: Sequence[Tensor | list[Any]], own: Any) -> Tensor | list[Any]:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        filled = [part for part in tensors if len(part)] or tensors[:1]
        if len({part.shape[1:] for part in filled}) == 1:
            joined = torch.cat(filled)
            return joined.to(own.device) if isinstance(own, Tensor) else joined
    return [row for part in parts for row in part]
