"""Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from collie.optim._plain import dense_grad, loss_of, refuse_values


class Lion(torch.optim.Optimizer):
    """Evolved sign momentum: c = β₁m + (1 − β₁)g;  θ ← θ − lr·(sign(c) + weight_decay·θ);  m ← β₂m + (1 − β₂)g.

    Its update looks at single elements alone, so it trains in every layout and ZeRO stage. Its state is one number an
    element, `exp_avg`. The authors advise a learning rate 3 to 10 times below AdamW's, and a decay as much above.

    Args:
        params: parameters or groups of them.
        lr: learning rate: each element moves by this much in a step.
        betas: β₁ of the update, β₂ of the momentum.
        weight_decay: decay per step, multiplied by lr.

    Raises:
        ConfigError: a value that cannot be meant.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        refuse_values(betas, lr=lr, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update; return what `closure` returns, if given."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(
                        parameter, dense_grad(parameter), **{k: group[k] for k in ("lr", "betas", "weight_decay")}
                    )
        return loss

    def _update(
        self, parameter: Tensor, grad: Tensor, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        momentum = state["exp_avg"]
        direction = momentum.lerp(grad, 1 - betas[0]).sign_()
        if weight_decay:
            direction.add_(parameter, alpha=weight_decay)
        parameter.add_(direction, alpha=-lr)
        momentum.lerp_(grad, 1 - betas[1])
