"""One optimizer update in each of its two forms: a plain optimizer's, or one that owns the backward pass."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collie.controller.trainer._objective import Objective
from collie.data import MicroBatch
from collie.optim import FusedOptimizer, rewind_random_numbers
from collie.parallel import Engine, Topology


@dataclass(frozen=True)
class StepResult:
    """What one step gives: its global mean loss (0-d, equal on every rank), and the gradient's norm where known."""

    loss: Tensor
    grad_norm: float | None
    applied: bool  # False where a gradient overflowed, and the update was left out
    shares: tuple[Tensor, ...] = ()  # of the loss, by this rank's micro-batches: 0-d, on the device


class Step(Protocol):
    """One optimizer update from this rank's micro-batches; `total` is the objective's weight of the global batch."""

    engine: Any
    objective: Objective

    def __call__(self, micro_batches: list[MicroBatch], total: int) -> StepResult: ...


class PlainStep:
    """Backward for each micro-batch, then one update, through DeepSpeed in every ZeRO stage."""

    def __init__(self, engine: Engine, objective: Objective, topology: Topology) -> None:
        self.engine = engine
        self.objective = objective
        self._topology = topology

    def __call__(self, micro_batches: list[MicroBatch], total: int) -> StepResult:
        shares = Shares(self._topology)
        # DeepSpeed divides by the micro-batches and averages over dp; shares are to be summed over both
        undo_means = len(micro_batches) * self._topology.dp_size
        applied = True
        for micro_batch in micro_batches:
            share = self.objective(self.engine, micro_batch, total)
            if isinstance(share, Tensor):
                self.engine.backward(share * undo_means)
                applied = self.engine.step()  # DeepSpeed counts these, and updates at the last one
            shares.add(share)
        return StepResult(shares.reduce(), self.engine.grad_norm(), applied, shares.parts)


class FusedStep:
    """The optimizer updates inside backward (LOMO): clipping needs a second pass, accumulation kept gradients."""

    def __init__(self, model: nn.Module, optimizer: FusedOptimizer, objective: Objective, topology: Topology) -> None:
        self.engine = model
        self._optimizer = optimizer
        self.objective = objective
        self._topology = topology

    def __call__(self, micro_batches: list[MicroBatch], total: int) -> StepResult:
        shares = Shares(self._topology)
        norm, applied = None, True
        for micro_batch in micro_batches:
            rewind = rewind_random_numbers(self._topology.device)
            share = self.objective(self.engine, micro_batch, total)
            shares.add(share)
            if not isinstance(share, Tensor):
                continue
            if len(micro_batches) > 1:
                self._optimizer.accumulate(self._averaged(share))
                continue
            if self._optimizer.needs_norm:
                norm = self._optimizer.grad_norm(self._averaged(share))
                if self._optimizer.needs_second_forward and not self._optimizer.overflowed:
                    rewind()  # the gradient applied must be the one that was measured: same dropout
                    share = torch.as_tensor(self.objective(self.engine, micro_batch, total))
            applied = self._optimizer.fused_backward(self._averaged(share))
        if self._optimizer.has_accumulated:
            norm = self._optimizer.apply_accumulated()
            applied = not self._optimizer.overflowed
        if norm is None and isinstance(share, Tensor):  # else the user's function applied it, or nobody
            norm = self._optimizer.applied_norm()
        return StepResult(shares.reduce(), norm if applied else None, applied, shares.parts)

    def _averaged(self, share: Tensor) -> Tensor:
        """The optimizer averages over dp; shares are to be summed."""
        return share * self._topology.dp_size


class Shares:
    """The sum of a step's loss shares on this rank, then over the dp ranks."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._sum = torch.zeros((), dtype=torch.float32, device=topology.device)
        self.parts: tuple[Tensor, ...] = ()

    def add(self, share: Tensor | float) -> None:
        part = torch.as_tensor(share).detach()
        self._sum += part
        self.parts += (part,)

    def reduce(self, *, of_last_stage: bool = False) -> Tensor:
        """Return the sum over the dp ranks; with `of_last_stage` that of the pipeline's last stage, on all stages."""
        topology = self._topology
        if topology.dp_group is not None:
            dist.all_reduce(self._sum, group=topology.dp_group)
        if of_last_stage:
            dist.broadcast(self._sum, group=topology.pp_group, group_src=topology.pp_size - 1)
        return self._sum
