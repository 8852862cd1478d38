"""Adan: adaptive Nesterov momentum (Xie et al. 2022, arXiv:2208.06677, algorithm 1)."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from collie.interfaces import ConfigError
from collie.optim._plain import dense_grad, loss_of, refuse_values


class Adan(torch.optim.Optimizer):
    """Moments of the gradient, of its change and of their extrapolation. With βᵢ the weights of what was before:

        m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)(g − g₋₁);  n ← β₃n + (1 − β₃)(g + β₂(g − g₋₁))²
        θ ← (θ − lr·(m̂ + β₂·v̂) / (√n̂ + eps)) / (1 + lr·weight_decay)

    (the paper writes 1 − βᵢ for them). As in the authors' code each moment is divided by 1 − βᵢᵗ, and in the first
    step the gradient has not changed. For one process and data parallelism at ZeRO stage 0.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: (β₁, β₂, β₃).
        eps: what is added to the denominator.
        weight_decay: decay per step, multiplied by lr.
        max_grad_norm: largest norm of the gradients of all params together; 0 for no clipping.
        no_prox: decay as AdamW does, θ ← (1 − lr·weight_decay)·θ before the step, instead of the division after it.
        foreach: whether all parameters of a group are updated together: fewer kernels, more memory at a time.
        fused: refused: there is no CUDA kernel of its own.

    Raises:
        ConfigError: a value that cannot be meant, or `fused`.
    """

    needs_whole_model: ClassVar[str] = "clips by the norm of all gradients, of which it must have the whole"

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        foreach: bool = True,
        fused: bool = False,
    ) -> None:
        refuse_values(betas, lr=lr, eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm)
        if fused:
            raise ConfigError("fused=True needs a CUDA kernel that CoLLiE does not bring. Use foreach=True.")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"max_grad_norm": max_grad_norm, "no_prox": no_prox, "foreach": foreach})

    @torch.no_grad()
    def restart_opt(self) -> None:
        """Let all moments begin anew, as the paper's restart condition does."""
        self.state.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update; return what `closure` returns, if given."""
        loss = loss_of(closure)
        clip = self._clip_coefficient()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for together in self._taken_together(parameters, group["foreach"]):
                self._update(together, [dense_grad(p) * clip for p in together], group)
        return loss

    def _taken_together(self, parameters: list[Tensor], foreach: bool) -> list[list[Tensor]]:
        """Return lists of parameters that are at the same step; without `foreach` of one each."""
        if not foreach:
            return [[parameter] for parameter in parameters]
        by_step: dict[int, list[Tensor]] = {}
        for parameter in parameters:
            by_step.setdefault(self.state[parameter].get("step", 0), []).append(parameter)
        return list(by_step.values())

    def _clip_coefficient(self) -> Tensor | float:
        most = self.defaults["max_grad_norm"]
        if not most:
            return 1.0
        grads = [dense_grad(p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        return (most / (torch.nn.utils.get_total_norm(grads) + self.defaults["eps"])).clamp(max=1.0)

    def _update(self, parameters: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        lr, decay = group["lr"], group["weight_decay"]
        beta_m, beta_v, beta_n = group["betas"]
        for parameter, grad in zip(parameters, grads, strict=True):
            if not self.state[parameter]:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_diff", "exp_avg_sq")}
                self.state[parameter] |= moments | {"previous_grad": grad.clone(), "step": 0}
            self.state[parameter]["step"] += 1
        step: int = self.state[parameters[0]]["step"]
        m, v, n, previous = (
            [self.state[p][name] for p in parameters]
            for name in ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")
        )
        changes = torch._foreach_sub(grads, previous)
        torch._foreach_copy_(previous, grads)
        torch._foreach_lerp_(m, grads, 1 - beta_m)
        torch._foreach_lerp_(v, changes, 1 - beta_v)
        torch._foreach_add_(grads, changes, alpha=beta_v)  # grads are copies, and now extrapolated
        torch._foreach_mul_(n, beta_n)
        torch._foreach_addcmul_(n, grads, grads, value=1 - beta_n)
        divisor = torch._foreach_sqrt(n)
        torch._foreach_div_(divisor, (1 - beta_n**step) ** 0.5)
        torch._foreach_add_(divisor, group["eps"])
        if decay and group["no_prox"]:
            torch._foreach_mul_(parameters, 1 - lr * decay)
        torch._foreach_addcdiv_(parameters, m, divisor, value=-lr / (1 - beta_m**step))
        torch._foreach_addcdiv_(parameters, v, divisor, value=-lr * beta_v / (1 - beta_v**step))
        if decay and not group["no_prox"]:
            torch._foreach_div_(parameters, 1 + lr * decay)
