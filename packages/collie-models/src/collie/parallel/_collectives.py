"""Exchanges between tensor-parallel ranks that autograd can pass through, each with its group in the call.

A group of None is that of one rank: nothing is exchanged.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group = dist.ProcessGroup | None


def total(x: Tensor, group: Group) -> Tensor:
    """Return the sum of `x` over `group`, as a new tensor."""
    summed = x.clone(memory_format=torch.contiguous_format)
    if group is not None:
        dist.all_reduce(summed, group=group)
    return summed


def sum_forward(x: Tensor, group: Group) -> Tensor:
    """Return the sum of `x` over `group`; its gradient is every rank's: the end of a row-parallel product."""
    return apply(_SumForward, x, group) if group is not None else x


def sum_backward(x: Tensor, group: Group) -> Tensor:
    """Return `x`, and sum its gradient over `group`: the beginning of a column-parallel product."""
    return apply(_SumBackward, x, group) if group is not None and torch.is_grad_enabled() else x


def gather_last(x: Tensor, group: Group) -> Tensor:
    """Return every rank's `x` of `group`, side by side along the last dimension.

    All ranks must use the result alike: each then has the whole gradient, and takes its own part of it.
    """
    return apply(_GatherLast, x, group) if group is not None else x


def linear_of_copies(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    """Return x·Wᵀ + b where every rank of `group` holds the same W and b, and uses the result for another part.

    The gradients of W and b are summed over `group`, so that the copies stay equal; that of x is this rank's alone.
    """
    return apply(_LinearOfCopies, x, weight, bias, group)


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """Call an autograd function that returns one tensor."""
    result: Tensor = function.apply(*arguments)
    return result


class _SumForward(torch.autograd.Function):
    """Sum forward, identity backward (Shoeybi et al. 2019, g)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return total(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _SumBackward(torch.autograd.Function):
    """Identity forward, sum backward (Shoeybi et al. 2019, f)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return total(grad, ctx.group), None


class _GatherLast(torch.autograd.Function):
    """Concatenate forward, this rank's part backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.width, ctx.place = x.shape[-1], dist.get_rank(group)
        parts = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.narrow(-1, ctx.place * ctx.width, ctx.width), None


class _LinearOfCopies(torch.autograd.Function):
    """A linear map whose parameters' gradients are summed.

    It saves the Parameter itself and no view of it, which would keep what ZeRO-3 gathered alive until backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group = group
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_x = grad @ weight if wants_x else None
        grad_weight = total(rows.t() @ x.flatten(0, -2), ctx.group) if wants_weight else None
        grad_bias = total(rows.sum(0), ctx.group) if wants_bias else None
        return grad_x, grad_weight, grad_bias, None
