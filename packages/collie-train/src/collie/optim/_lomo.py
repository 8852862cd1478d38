"""LOMO: SGD that updates each parameter inside the backward pass (Lv et al. 2023, arXiv:2306.09782, algorithm 1)."""

from typing import Any

from torch import Tensor, nn

from collie.interfaces import ConfigError
from collie.optim._fused import FusedOptimizer
from collie.parallel import Shard


class Lomo(FusedOptimizer):
    """Low-memory optimization: θ ← θ − lr·(g + weight_decay·θ), one parameter at a time, while gradients are computed.

    Exactly SGD where nothing is clipped. Works on plain, data-parallel and ZeRO-3 models; ZeRO stages 1 and 2 mean
    plain data parallelism here, since there is no optimizer state and no stored gradient to partition.

    Args:
        model: the model to train (not its parameters: LOMO hooks into its backward pass).
        lr: learning rate.
        clip_grad_norm: largest norm of the whole gradient. Costs a second backward pass over the same graph.
        clip_grad_value: largest absolute value of a gradient's element.
        weight_decay: decay per step, multiplied by lr.
        loss_scale_args: refused when given: float16 training is not available for LOMO in this version.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        weight_decay: float = 0.0,
        loss_scale_args: dict[str, Any] | None = None,
    ) -> None:
        if lr < 0:
            raise ConfigError(f"lr={lr!r} must not be negative.")
        if weight_decay < 0:
            raise ConfigError(f"weight_decay={weight_decay!r} must not be negative.")
        if loss_scale_args:
            raise ConfigError(
                "loss_scale_args is for float16, which LOMO does not train in this version. "
                "Leave it out and load the model in bfloat16 or float32."
            )
        super().__init__(model, {"lr": lr, "weight_decay": weight_decay}, clip_grad_norm, clip_grad_value)

    def update(self, shard: Shard, grad: Tensor, lr: float) -> None:
        decay = self.param_groups[0]["weight_decay"]
        if decay:
            shard.data.mul_(1 - lr * decay)
        shard.data.add_(grad, alpha=-lr)
