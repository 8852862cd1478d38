"""LOMO: SGD that updates each parameter inside the backward pass (Lv et al. 2023, arXiv:2306.09782, algorithm 1)."""

from typing import Any

from torch import Tensor, nn

from collie.interfaces import ConfigError
from collie.optim._fused import FusedOptimizer, has_float16
from collie.optim._groups import Patterns
from collie.optim._loss_scale import DynamicLossScaler
from collie.parallel import Shard


class Lomo(FusedOptimizer):
    """Low-memory optimization: θ ← θ − lr·(g + weight_decay·θ), one parameter at a time, while gradients are computed.

    Exactly SGD where nothing is clipped. Works in every layout; ZeRO stages 1 and 2 mean plain data parallelism here,
    since there is no optimizer state and no stored gradient to partition.

    Args:
        model: the model to train (not its parameters: LOMO hooks into its backward pass).
        lr: learning rate.
        clip_grad_norm: largest norm of the whole gradient. Costs a second backward pass over the same graph.
        clip_grad_value: largest absolute value of a gradient's element.
        weight_decay: decay per step, multiplied by lr.
        loss_scale_args: arguments of DynamicLossScaler, for a float16 model, which costs a second backward pass, too:
            an overflow is found before any weight is changed.
        no_decay: patterns of names of parameters without decay, such as ("*bias", "*norm*").
        stochastic_rounding: whether bfloat16 weights are rounded by chance, so that small steps are not lost.

    Raises:
        ConfigError: a value that cannot be meant, `loss_scale_args` for a model that is not in float16, and what
            FusedOptimizer refuses.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        weight_decay: float = 0.0,
        loss_scale_args: dict[str, Any] | None = None,
        *,
        no_decay: Patterns = (),
        stochastic_rounding: bool = False,
    ) -> None:
        if loss_scale_args and not has_float16(model):
            raise ConfigError(
                "loss_scale_args is for models in float16, and this one is not. Leave it out, or load the model with "
                "dtype=torch.float16."
            )
        super().__init__(
            model,
            {"lr": lr, "weight_decay": weight_decay},
            clip_grad_norm,
            clip_grad_value,
            no_decay=no_decay,
            loss_scaler=DynamicLossScaler(**(loss_scale_args or {})),
            stochastic_rounding=stochastic_rounding,
        )

    def update(self, shard: Shard, grad: Tensor, lr: float, weight_decay: float) -> None:
        if weight_decay:
            grad.add_(shard.data, alpha=weight_decay)
        self.change(shard, grad, -lr)
