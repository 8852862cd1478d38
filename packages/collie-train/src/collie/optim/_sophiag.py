"""Sophia with the Gauss-Newton-Bartlett estimator (Liu et al. 2023, arXiv:2305.14342, algorithms 2 and 3).

"Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training".
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from collie.interfaces import ConfigError
from collie.optim._plain import dense_grad, loss_of, refuse_values
from collie.parallel import active_topology

_SMALLEST_CURVATURE = 1e-15  # the authors' code has the same


class SophiaG(torch.optim.Optimizer):
    """Momentum divided by an estimate of the Hessian's diagonal, no element moving by more than lr:

        m ← β₁m + (1 − β₁)g;  θ ← θ − lr·weight_decay·θ;  θ ← θ − lr·sign(m)·min(|m| / (rho·bs·h), 1)

    `update_hessian()`, every 10 steps or so: h ← β₂h + (1 − β₂)ĝ², where ĝ is the gradient of the mean loss over
    labels that were drawn from the model's own output, and bs·ĝ² the estimate of the Hessian. Until its first call h is
    zero, and `step` moves by sign(m).

    For one process and data parallelism at ZeRO stage 0, weights in float32.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: β₁ of the momentum, β₂ of the curvature.
        rho: the larger, the fewer elements are clipped.
        weight_decay: decay per step, multiplied by lr.
        maximize: go up instead of down.
        capturable: refused: steps cannot be captured in a CUDA graph.

    Raises:
        ConfigError: a value that cannot be meant, or `capturable`.
    """

    needs_whole_model: ClassVar[str] = "estimates curvature from the gradients of whole parameters (update_hessian)"

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 1e-1,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        refuse_values(betas, lr=lr, rho=rho, weight_decay=weight_decay)
        if capturable:
            raise ConfigError("capturable=True: steps of SophiaG cannot be captured in a CUDA graph. Leave it out.")
        defaults = {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    @torch.no_grad()
    def update_hessian(self) -> None:
        """Take the gradients that are there as ĝ, averaged over the dp ranks; they are left for the caller to zero.

        Raises:
            RuntimeError: there are none: with half-precision weights DeepSpeed keeps them from it until `step`.
        """
        topology = active_topology()
        if all(parameter.grad is None for group in self.param_groups for parameter in group["params"]):
            raise RuntimeError(
                "update_hessian found no gradient. Call it after a backward pass and before zero_grad, on weights in "
                "float32: DeepSpeed steps copies of others, which have gradients within step alone."
            )
        for group in self.param_groups:
            beta = group["betas"][1]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                grad = dense_grad(parameter)
                if topology.dp_group is not None:
                    grad = grad.clone()
                    dist.all_reduce(grad, group=topology.dp_group)
                    grad.div_(topology.dp_size)
                self._state(parameter)["hessian"].mul_(beta).addcmul_(grad, grad, value=1 - beta)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, bs: int = 5120) -> Any:
        """Make one update; return what `closure` returns, if given.

        Args:
            closure: makes loss and gradients.
            bs: tokens of the batch that ĝ is the mean over, B in the paper.
        """
        loss = loss_of(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, dense_grad(parameter), group, bs)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any], bs: int) -> None:
        state = self._state(parameter)
        momentum = state["exp_avg"].lerp_(-grad if group["maximize"] else grad, 1 - group["betas"][0])
        curvature = (state["hessian"] * (group["rho"] * bs)).add_(_SMALLEST_CURVATURE)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcmul_(momentum.sign(), (momentum.abs() / curvature).clamp_(max=1.0), value=-group["lr"])

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["hessian"] = torch.zeros_like(parameter)
        return state
