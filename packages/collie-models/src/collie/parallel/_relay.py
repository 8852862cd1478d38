"""One forward through all pipeline stages, one stage after the other, that autograd can pass back through.

This is how `model(**batch)` and `generate` work on every rank of a pipeline. Only one stage works at a time: training
steps go through `collie.parallel.Pipeline`, where the stages work side by side.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from collie.parallel._stages import Stages
from collie.parallel._topology import Topology


class Relay:
    """Hands hidden states on from stage to stage, and the last stage's result to all ranks.

    Every rank makes the same calls for the stages that it has, in the stages' order, and then `share`. A rank's
    backward pass then meets those of its neighbours: all ranks must call `backward` on what they were given.

    Args:
        stages: which rank has which stage.
        topology: this rank's place.
    """

    def __init__(self, stages: Stages, topology: Topology) -> None:
        assert topology.pp_group is not None
        self._stages = stages
        self._group: dist.ProcessGroup = topology.pp_group
        self._device = topology.device
        self._sent: list[Tensor] = []  # what a backward pass must go through besides this rank's result

    def receive(self, stage: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return what the stage before `stage` has sent."""
        source = self._stages.rank_of(stage - 1)
        return _call(_Receive, self._start(), source, shape, dtype, self._group)

    def send(self, stage: int, hidden: Tensor, dtype: torch.dtype) -> None:
        """Send a stage's output to the next one, which receives it in `dtype`: under autocast it may be in another."""
        target = self._stages.rank_of(stage + 1)
        self._sent.append(_call(_Send, self._start(), hidden.to(dtype), target, self._group))

    def share(self, result: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return on every rank what the last stage gives; None is given by the others."""
        last = self._stages.ranks - 1
        mine = result.to(dtype) if result is not None else torch.empty(shape, dtype=dtype, device=self._device)
        return _call(_Share, mine, last, self._group, *self._sent)

    def _start(self) -> Tensor:
        """What brings autograd back to an exchange, also where nothing before it needs a gradient."""
        return torch.empty((), device=self._device, requires_grad=True)


def _call(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


class _Receive(torch.autograd.Function):
    """Receive forward, send the gradient back backward."""

    @staticmethod
    def forward(
        ctx: Any, start: Tensor, source: int, shape: tuple[int, ...], dtype: torch.dtype, group: dist.ProcessGroup
    ) -> Tensor:
        ctx.source, ctx.group = source, group
        hidden = torch.empty(shape, dtype=dtype, device=start.device)
        dist.recv(hidden, group=group, group_src=source)
        return hidden

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dist.send(grad.contiguous(), group=ctx.group, group_dst=ctx.source)
        return grad.new_zeros(()), None, None, None, None


class _Send(torch.autograd.Function):
    """Send forward, receive the gradient backward; the result is nothing but a handle on that."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, hidden: Tensor, target: int, group: dist.ProcessGroup) -> Tensor:
        ctx.target, ctx.group, ctx.like = target, group, (hidden.shape, hidden.dtype, hidden.device)
        dist.send(hidden.contiguous(), group=group, group_dst=target)
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, done: Tensor) -> tuple[Tensor, Tensor, None, None]:
        shape, dtype, device = ctx.like
        grad = torch.empty(shape, dtype=dtype, device=device)
        dist.recv(grad, group=ctx.group, group_src=ctx.target)
        return done, grad, None, None


class _Share(torch.autograd.Function):
    """Broadcast forward; backward the last stage has the gradient, and the others wait for theirs in `_Send`."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, last: int, group: dist.ProcessGroup, *sent: Tensor) -> Tensor:
        ctx.sent = len(sent)
        result = mine.clone(memory_format=torch.contiguous_format)
        dist.broadcast(result, group=group, group_src=last)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None, *(grad.new_zeros(()) for _ in range(ctx.sent))
