"""Optimizers that own the backward pass: a parameter is updated as soon as its gradient exists, and the gradient freed.

At any moment at most one parameter's gradient is alive, so that a training step needs the memory of the weights
alone (Lv et al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited Resources", algorithm 1).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from collie.interfaces import ConfigError
from collie.parallel import Shard, Topology, active_topology, is_partitioned, release_parameters, shard_of, squared_norm

_OnGradient = Callable[[Shard, Tensor], None]
_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ has the same


class FusedOptimizer(torch.optim.Optimizer):
    """Base of optimizers that update inside `backward`, over plain, data-parallel and ZeRO-3 parameters.

    A hook on each parameter hands its gradient, averaged over the dp ranks and cut to this rank's shard, to what the
    current pass does with gradients: measure their norm, apply them, or keep them.

    - `fused_backward(loss, lr)`: one backward pass that applies each gradient and frees it.
    - `grad_norm(loss)` before it: a first backward pass that only measures the gradient's norm; `fused_backward` then
      scales gradients down to `clip_grad_norm`. Both pass over the same graph, so through the same dropout, unless
      `needs_second_forward`: ZeRO-3 has let go of the weights, and the caller makes the loss again (with the same
      random numbers, see `rewind_random_numbers`).
    - `accumulate(loss)` for each micro-batch and `apply_accumulated(lr)` after the last: gradients are kept in
      between, which costs their memory (each rank's shard of them under ZeRO-3). So do the stages of a pipeline.

    Losses are means over a rank's share: gradients are averaged over the dp ranks, as torch's DDP averages them.

    Args:
        model: a model made by CoLLiE, or any module with plain parameters. Only parameters that require a gradient
            are updated.
        defaults: the param group's options; `lr` is among them, so that torch's schedulers work.
        clip_grad_norm: largest norm of the whole gradient, or None.
        clip_grad_value: largest absolute value of a gradient's element, or None; applied after the norm.

    Raises:
        ConfigError: a clip is not positive, or no parameter requires a gradient, or parameters are in float16.
    """

    def __init__(
        self,
        model: nn.Module,
        defaults: dict[str, Any],
        clip_grad_norm: float | None,
        clip_grad_value: float | None,
    ) -> None:
        for name, value in (("clip_grad_norm", clip_grad_norm), ("clip_grad_value", clip_grad_value)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value!r} must be above 0, or None for no clipping.")
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters and active_topology().pp_size == 1:  # of a pipeline's stages some may have none
            raise ConfigError(f"{type(self).__name__} got a model in which no parameter requires a gradient.")
        if any(p.dtype is torch.float16 for p in parameters):
            raise ConfigError(
                f"{type(self).__name__} updates in the weights' own precision, and float16 gradients underflow without "
                f"loss scaling. Load the model with dtype=torch.bfloat16 or torch.float32."
            )
        super().__init__([{"params": parameters}], defaults)
        self.model = model
        self.clip_grad_norm = clip_grad_norm
        self.clip_grad_value = clip_grad_value
        self._on_gradient: _OnGradient | None = None
        self._scale = 1.0  # what clip_grad_norm leaves of a gradient in the coming pass
        self._kept: dict[nn.Parameter, Tensor] = {}
        self._hooks = [p.register_post_accumulate_grad_hook(self._receive) for p in parameters]

    @abstractmethod
    def update(self, shard: Shard, grad: Tensor, lr: float) -> None:
        """Update `shard.data` in place with its final gradient (same shape; clipped, averaged over dp)."""

    @property
    def topology(self) -> Topology:
        """The ranks that train: those of now, since the optimizer may have been made before they were arranged."""
        return active_topology()

    @property
    def needs_second_forward(self) -> bool:
        """Whether the loss that `grad_norm` got cannot be given to `fused_backward`, too."""
        return any(is_partitioned(parameter) for parameter in self.param_groups[0]["params"])

    @property
    def has_accumulated(self) -> bool:
        """Whether gradients are kept that `apply_accumulated` has not applied."""
        return bool(self._kept)

    def grad_norm(self, loss: Tensor) -> float:
        """Backpropagate once to measure the norm of the whole gradient, for the `fused_backward` that follows."""
        squares: list[tuple[Shard, Tensor]] = []
        with self._pass(lambda shard, grad: squares.append((shard, _squared(grad)))):
            loss.backward(retain_graph=not self.needs_second_forward)
        norm = squared_norm(squares, self.topology).sqrt().item()
        self._scale = self._clip_coefficient(norm)
        return norm

    def fused_backward(self, loss: Tensor, lr: float) -> None:
        """Backpropagate and update every parameter on the way, with learning rate `lr`."""
        with self._pass(lambda shard, grad: self._apply(shard, grad, lr)):
            loss.backward()
        self._finish()

    def accumulate(self, loss: Tensor) -> None:
        """Backpropagate one of several micro-batches, adding its gradients to those that are kept."""
        with self.accumulating():
            loss.backward()

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Within it every backward pass, whoever makes it (a pipeline does), adds its gradients to those kept."""
        with self._pass(self._keep):
            yield
        release_parameters(self.model)

    def accumulated(self, parameter: nn.Parameter) -> Tensor:
        """Return the gradient that is kept of a whole parameter, zero if it got none, to be changed in place."""
        return self._kept.setdefault(parameter, torch.zeros_like(parameter))

    def apply_accumulated(self, lr: float) -> float | None:
        """Update with the kept gradients; return the gradient's norm where clipping needed it."""
        kept = [(shard_of(parameter, self.topology), grad) for parameter, grad in self._kept.items()]
        norm = None
        if self.clip_grad_norm is not None:
            norm = squared_norm(((s, _squared(g)) for s, g in kept), self.topology).sqrt().item()
            self._scale = self._clip_coefficient(norm)
        self._kept = {}
        with torch.no_grad():
            while kept:
                shard, grad = kept.pop()
                self._apply(shard, grad, lr)
        self._finish()
        return norm

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Refused: there are no gradients left to step with after a backward pass."""
        raise RuntimeError(
            f"{type(self).__name__} updates inside the backward pass: call fused_backward(loss, lr) instead of "
            f"loss.backward() and step()."
        )

    def close(self) -> None:
        """Take the hooks off the model, which then trains like any other."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def _pass(self, on_gradient: _OnGradient) -> Iterator[None]:
        self._on_gradient = on_gradient
        try:
            yield
        finally:
            self._on_gradient = None

    def _finish(self) -> None:
        self._scale = 1.0
        release_parameters(self.model)

    @torch.no_grad()
    def _receive(self, parameter: nn.Parameter) -> None:
        """Take a gradient off its parameter the moment it is complete (also where two modules share the parameter)."""
        if self._on_gradient is None or parameter.grad is None:
            return  # a backward pass that is not ours: leave the gradient where torch put it
        grad, parameter.grad = parameter.grad, None
        shard = shard_of(parameter, self.topology)
        self._on_gradient(shard, shard.reduce(grad))

    def _keep(self, shard: Shard, grad: Tensor) -> None:
        if shard.parameter in self._kept:
            self._kept[shard.parameter].add_(grad)
        else:
            self._kept[shard.parameter] = grad

    def _apply(self, shard: Shard, grad: Tensor, lr: float) -> None:
        if self._scale != 1.0:
            grad.mul_(self._scale)
        if self.clip_grad_value is not None:
            grad.clamp_(-self.clip_grad_value, self.clip_grad_value)
        self.update(shard, grad, lr)

    def _clip_coefficient(self, norm: float) -> float:
        if self.clip_grad_norm is None:
            return 1.0
        return min(1.0, self.clip_grad_norm / (norm + _EPSILON))


def rewind_random_numbers(device: torch.device) -> Callable[[], None]:
    """Return a function that turns torch's generators back to where they stand now."""
    cpu = torch.get_rng_state()
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)

    return rewind


def _squared(grad: Tensor) -> Tensor:
    return grad.float().square().sum()
