"""Exchanges of activations that tensor-parallel ranks split along the sequence; autograd can pass through each.

Of S positions a rank holds ceil(S/ranks), the first rank the first ones. Where S does not divide, zeros stand behind
the last position; whatever becomes of them, they are cut off again and their gradients are zero.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from collie.parallel._collectives import apply

# B batch, S sequence, P a rank's part of it, E hidden

_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_for_parts(x_BPE: Tensor, length: int, group: dist.ProcessGroup) -> Tensor:
    """Return all positions [B, S, E], from which each rank computes another part: their gradients are summed.

    The beginning of a column-parallel product (Korthikanti et al. 2022, g).
    """
    return apply(_Exchange, x_BPE, partial(_gather, length=length, group=group), partial(_sum_to_part, group=group))


def sum_to_part(x_BSE: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return this rank's positions of the sum over the group: the end of a row-parallel product (ḡ)."""
    return apply(
        _Exchange, x_BSE, partial(_sum_to_part, group=group), partial(_gather, length=x_BSE.shape[1], group=group)
    )


def gather_alike(x_BPE: Tensor, length: int, group: dist.ProcessGroup) -> Tensor:
    """Return all positions [B, S, E]; all ranks use them alike, and each takes its part of a gradient they all have."""
    return apply(_Exchange, x_BPE, partial(_gather, length=length, group=group), partial(_part, group=group))


def own_part(x_BSE: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return this rank's positions of what all ranks hold; its gradient is again whole on each."""
    return apply(_Exchange, x_BSE, partial(_part, group=group), partial(_gather, length=x_BSE.shape[1], group=group))


def _gather(x_BPE: Tensor, length: int, group: dist.ProcessGroup) -> Tensor:
    ranks, (rows, width, hidden) = dist.get_world_size(group), x_BPE.shape
    parts = x_BPE.new_empty(ranks * rows, width, hidden)
    _all_gather(parts, x_BPE.contiguous(), group=group)
    whole_BSE = parts.view(ranks, rows, width, hidden).transpose(0, 1).flatten(1, 2)
    return whole_BSE.narrow(1, 0, length)


def _sum_to_part(x_BSE: Tensor, group: dist.ProcessGroup) -> Tensor:
    parts = _padded(x_BSE, group).unflatten(1, (dist.get_world_size(group), -1)).transpose(0, 1).contiguous()
    own_BPE = torch.empty_like(parts[0])
    _reduce_scatter(own_BPE, parts.flatten(0, 1), group=group)
    return own_BPE


def _part(x_BSE: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _padded(x_BSE, group).chunk(dist.get_world_size(group), 1)[dist.get_rank(group)]


def _padded(x_BSE: Tensor, group: dist.ProcessGroup) -> Tensor:
    return F.pad(x_BSE, (0, 0, 0, -x_BSE.shape[1] % dist.get_world_size(group)))


_Step = Callable[[Tensor], Tensor]


class _Exchange(torch.autograd.Function):
    """`there` forward, `back` backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: _Step, back: _Step) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grad), None, None
