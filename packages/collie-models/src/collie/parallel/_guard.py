"""What DeepSpeed does before an update in all modes but one: tell the gradient's norm, leave out what is not finite.

Without ZeRO and in float32 it does neither (it clips without telling the norm), and calls the optimizer with gradients
that lie in the parameters.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collie.parallel._tied import counts_here
from collie.parallel._topology import Topology

_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ and DeepSpeed have the same


class UpdateGuard:
    """Looks at the gradients right before each update of `optimizer`, and clips them.

    Args:
        optimizer: one over parameters whose `grad` is whole, or tensor-parallel parts, and averaged over dp.
        topology: the ranks that update together.
        max_norm: the norm that gradients are scaled down to; 0.0 for none.
        leaves_out: whether an update with a gradient that is not finite is not made. This makes the host wait for
            the gradients; without it, the norm is only fetched when it is asked for.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, topology: Topology, max_norm: float, leaves_out: bool) -> None:
        self.left_out = False
        self._topology, self._max_norm, self._leaves_out = topology, max_norm, leaves_out
        self._norm: Tensor | None = None
        self._hook = optimizer.register_step_pre_hook(self._look)

    def norm(self) -> float | None:
        """The norm of the last gradient before clipping, equal on every rank; None before the first."""
        return self._norm.item() if self._norm is not None else None

    def remove(self) -> None:
        """Leave the optimizer alone from here on."""
        self._hook.remove()

    @torch.no_grad()
    def _look(self, optimizer: torch.optim.Optimizer, *call: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        counted = [p.grad for p in parameters if counts_here(p, self._topology)]
        square = nn.utils.get_total_norm(counted).float().square().to(self._topology.device)
        if self._topology.model_group is not None:
            dist.all_reduce(square, group=self._topology.model_group)
        self._norm = square.sqrt()
        self.left_out = self._leaves_out and not self._norm.isfinite().item()
        if self._max_norm:
            scale = (self._max_norm / (self._norm + _EPSILON)).clamp(max=1.0)
            for parameter in parameters:
                parameter.grad *= scale
        if self.left_out:
            for parameter in parameters:
                parameter.grad = None  # which optimizers pass over, their states too
