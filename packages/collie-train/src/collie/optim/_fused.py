"""Optimizers that own the backward pass: a parameter is updated as soon as its gradient exists, and the gradient freed.

At any moment at most one parameter's gradient is alive, so that a training step needs the memory of the weights
alone (Lv et al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited Resources", algorithm 1).
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from collie.interfaces import ConfigError
from collie.optim._gradients import GradientHooks, KeptGradients, squared
from collie.optim._groups import Patterns, named, on_any_stage, param_groups
from collie.optim._loss_scale import DynamicLossScaler
from collie.optim._rounding import AlikeDraws, round_stochastically
from collie.parallel import Shard, Topology, active_topology, is_partitioned, release_parameters, shard_of, squared_norm

_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ has the same


class FusedOptimizer(torch.optim.Optimizer):
    """Base of optimizers that update inside `backward`, over plain, data-parallel and ZeRO-3 parameters.

    A hook on each parameter hands its gradient to what the current pass does with gradients: measure their norm, apply
    them, or keep them. Measured and applied are averages over the dp ranks, cut to this rank's shard.

    - `fused_backward(loss)`: one backward pass that applies each gradient and frees it.
    - `grad_norm(loss)` before it, where `needs_norm`: a first backward pass that only measures the gradient's norm.
      `fused_backward` then scales gradients down to `clip_grad_norm`, or in float16 does nothing where they overflow.
      Both pass over the same graph, so through the same dropout, unless `needs_second_forward`: ZeRO-3 has let go of
      the weights, and the caller makes the loss again (with the same random numbers, see `rewind_random_numbers`).
    - `accumulate(loss)` for each micro-batch and `apply_accumulated()` after the last: gradients are kept in between,
      which costs their memory (each rank's shard of them under ZeRO-3). So do the stages of a pipeline.

    Losses are means over a rank's share: gradients are averaged over the dp ranks, as torch's DDP averages them. A
    parameter that the losses of some ranks do not depend on has gradient zero there. One that no rank's depends on is
    left as it is, without decay. Under ZeRO-3 all losses must depend on the same parameters, since DeepSpeed gathers
    them on all ranks at once; that they do not is found before the backward pass.

    Attributes:
        loss_scaler: for float16 weights, else None. Losses are scaled here: callers give and get unscaled ones.
        overflowed: whether the gradient measured last, in float16, overflowed and is not applied. Equal on all ranks.

    Args:
        model: a model made by CoLLiE, or any module with plain parameters. Only parameters that require a gradient
            are updated.
        defaults: the param groups' options; `lr` is among them, so that torch's schedulers work, and `weight_decay`.
        clip_grad_norm: largest norm of the whole gradient, or None.
        clip_grad_value: largest absolute value of a gradient's element, or None; applied after the norm.
        no_decay: patterns of names of parameters that do not decay, in a param group of their own.
        loss_scaler: used if weights are in float16.
        stochastic_rounding: whether bfloat16 weights are rounded by chance, so that small steps are kept on average.

    Raises:
        ConfigError: a value that cannot be meant; no parameter requires a gradient; `no_decay` matches none;
            stochastic rounding without bfloat16 weights.
    """

    whole_states: ClassVar[frozenset[str]] = frozenset()
    """Names of states that are of a whole parameter, equal on all ranks of a stage; others are shaped as its shard."""

    def __init__(
        self,
        model: nn.Module,
        defaults: dict[str, Any],
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        *,
        no_decay: Patterns = (),
        loss_scaler: DynamicLossScaler | None = None,
        stochastic_rounding: bool = False,
    ) -> None:
        _refuse_values(defaults, clip_grad_norm=clip_grad_norm, clip_grad_value=clip_grad_value)
        groups = param_groups(model, defaults["weight_decay"], no_decay)
        if not on_any_stage(bool(groups)):
            raise ConfigError(f"{type(self).__name__} got a model in which no parameter requires a gradient.")
        super().__init__(groups or [{"params": []}], defaults)
        parameters = self._parameters()
        self.model = model
        self.clip_grad_norm = clip_grad_norm
        self.clip_grad_value = clip_grad_value
        self.loss_scaler = loss_scaler if has_float16(model) else None
        self.overflowed = False
        self._draws = _draws(model, parameters) if stochastic_rounding else None
        self._measured = False
        self._squares: list[tuple[Shard, Tensor]] | None = None  # of the gradients that the last step applied
        self._scale = 1.0  # what clip_grad_norm leaves of a gradient in the coming pass
        self._kept = KeptGradients()
        names = {parameter: whole for (_, whole), parameter in named(model)}
        self._hooks = GradientHooks({parameter: names[parameter] for parameter in parameters})

    @abstractmethod
    def update(self, shard: Shard, grad: Tensor, lr: float, weight_decay: float) -> None:
        """Update `shard.data` in place with its final gradient, which it may use up.

        Args:
            shard: this rank's part of one parameter.
            grad: in the shape of `shard.data`, averaged over dp and clipped; of float16 models in float32.
            lr: learning rate.
            weight_decay: of this parameter.
        """

    @property
    def topology(self) -> Topology:
        """The ranks that train: those of now, since the optimizer may have been made before they were arranged."""
        return active_topology()

    @property
    def needs_norm(self) -> bool:
        """Whether each step measures before it updates: to clip by the norm, or to find that float16 overflows."""
        return self.clip_grad_norm is not None or self.loss_scaler is not None

    @property
    def needs_second_forward(self) -> bool:
        """Whether the loss that `grad_norm` got cannot be given to `fused_backward`, too."""
        return any(is_partitioned(parameter) for parameter in self._parameters())

    @property
    def has_accumulated(self) -> bool:
        """Whether gradients are kept that `apply_accumulated` has not applied."""
        return bool(self._kept)

    def scaled(self, loss: Tensor) -> Tensor:
        """Return what is to be backpropagated for a loss: in float16 a multiple of it. For `accumulating` alone."""
        return loss * self.loss_scaler.loss_scale if self.loss_scaler is not None else loss

    def grad_norm(self, loss: Tensor) -> float:
        """Backpropagate once to measure the norm of the whole gradient, for the `fused_backward` that follows.

        Not finite where float16 overflows, which lowers the loss scale. Raises RuntimeError as `fused_backward` does.
        """
        self._refuse_tied_ends()
        squares: list[tuple[Shard, Tensor]] = []

        def measure(parameter: nn.Parameter, grad: Tensor) -> None:
            shard = shard_of(parameter, self.topology)
            squares.append((shard, squared(shard.reduce(grad))))

        with self._hooks.hand_to(measure, loss):
            self.scaled(loss).backward(retain_graph=not self.needs_second_forward)
        return self._measure(squares)

    def applied_norm(self) -> float | None:
        """Return the norm of the whole gradient that the last step applied, before clipping; None where there was none.

        Collective. It costs one pass over each gradient while it is there, and no second backward pass.
        """
        if self._squares is None:
            return None
        squares, self._squares = self._squares, None
        return squared_norm(squares, self.topology).sqrt().item()

    def fused_backward(self, loss: Tensor, lr: float | None = None) -> bool:
        """Backpropagate and update every parameter on the way; return whether it did: not where float16 overflows.

        Args:
            loss: this rank's loss.
            lr: learning rate of all parameters; None for that of their param groups, which schedulers set.

        Raises:
            RuntimeError: `needs_norm`, and `grad_norm` was not called; or pipeline stages hold a tied weight's ends.
        """
        self._refuse_tied_ends()
        if self.needs_norm and not self._measured:
            raise RuntimeError(
                "clip_grad_norm and float16 need the gradient's norm first: "
                "call grad_norm(loss) before fused_backward(loss)."
            )
        self._measured, self._squares = False, []
        if self.overflowed:
            return False
        groups = self._group_of_each()

        def apply(parameter: nn.Parameter, grad: Tensor) -> None:
            shard = shard_of(parameter, self.topology)
            self._apply(shard, shard.reduce(grad), groups[parameter], lr)

        with self._hooks.hand_to(apply, loss):
            self.scaled(loss).backward()
        self._finish()
        return True

    def accumulate(self, loss: Tensor) -> None:
        """Backpropagate one of several micro-batches, adding its gradients to those that are kept."""
        with self._hooks.hand_to(self._kept.add, loss if self.needs_second_forward else None):
            self.scaled(loss).backward()
        release_parameters(self.model)

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Within it backward passes of `scaled` losses, whoever makes them (a pipeline does), add to what is kept."""
        with self._hooks.hand_to(self._kept.add):
            yield
        release_parameters(self.model)

    def accumulated(self, parameter: nn.Parameter) -> Tensor:
        """Return the gradient that is kept of a whole parameter, zero if it got none, to be changed in place.

        It is this rank's own, not yet averaged over dp, and of a `scaled` loss.
        """
        return self._kept.of(parameter)

    @torch.no_grad()
    def apply_accumulated(self, lr: float | None = None) -> float | None:
        """Update with the kept gradients; return the gradient's norm where `needs_norm`.

        Does nothing but lower the loss scale where float16 overflows, see `overflowed`.
        """
        groups, gradients = self._group_of_each(), self._kept.take(self._parameters(), self.topology)
        norm = None
        if self.needs_norm:
            held = list(gradients)
            norm = self._measure((shard, squared(grad)) for shard, grad in held)
            gradients = (held.pop() for _ in range(len(held)))
        self._measured, self._squares = False, []
        if self.overflowed:
            return norm
        for shard, grad in gradients:
            self._apply(shard, grad, groups[shard.parameter], lr)
        self._finish()
        return norm

    def change(self, shard: Shard, by: Tensor, alpha: float = 1.0) -> None:
        """Add alpha·by to weights, rounding once: the nearest value, or with stochastic rounding one by chance.

        Args:
            shard: whose weights; of a ZeRO-3 slice as many of the first as `by` has.
            by: in the weights' dtype or in float32.
            alpha: factor.
        """
        weights = shard.data if by.shape == shard.data.shape else shard.data[: by.numel()]
        if self._draws is None or weights.dtype is not torch.bfloat16:
            weights.add_(by, alpha=alpha)
            return
        exact = weights.float().add_(by, alpha=alpha)
        step = self.state[shard.parameter].setdefault("rounded", 0)
        self.state[shard.parameter]["rounded"] = step + 1
        weights.copy_(round_stochastically(exact, self._draws.generator(shard, step)))

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict; with a float16 model also the loss scale's."""
        state: dict[str, Any] = super().state_dict()
        return state | ({"loss_scaler": self.loss_scaler.state_dict()} if self.loss_scaler is not None else {})

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict` of the same layout, states in the precision that they have there."""
        super().load_state_dict(state_dict)
        for parameter, state in zip(self._parameters(), _in_order(state_dict), strict=True):
            if state is not None:  # torch has cast it to the weights' dtype
                device = shard_of(parameter, self.topology).data.device
                kept = {k: v.to(device, copy=True) if isinstance(v, Tensor) else v for k, v in state.items()}
                self.state[parameter] = kept
        if self.loss_scaler is not None and "loss_scaler" in state_dict:
            self.loss_scaler.load_state_dict(state_dict["loss_scaler"])

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Refused: there are no gradients left to step with after a backward pass."""
        raise RuntimeError(
            f"{type(self).__name__} updates inside the backward pass: call fused_backward(loss, lr) instead of "
            f"loss.backward() and step()."
        )

    def close(self) -> None:
        """Take the hooks off the model, which then trains like any other."""
        self._hooks.close()

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _group_of_each(self) -> dict[nn.Parameter, dict[str, Any]]:
        return {parameter: group for group in self.param_groups for parameter in group["params"]}

    def _refuse_tied_ends(self) -> None:
        """Refuse, on every stage alike, to use up the gradient of a tied weight before the other end's is added."""
        tied = getattr(getattr(self.model, "config", None), "tie_word_embeddings", False)
        if tied and self.topology.pp_size > 1:
            raise RuntimeError(
                f"tie_word_embeddings with pp_size={self.topology.pp_size}: a gradient of the tied weight is complete "
                f"when those of the first and the last pipeline stage are summed, after the backward pass. "
                f"Return the loss from train_fn: the Trainer backpropagates it, and updates after that."
            )

    def _measure(self, squares: Iterable[tuple[Shard, Tensor]]) -> float:
        """Return the norm of the unscaled gradient, and settle what becomes of it in this step."""
        scale = self.loss_scaler.loss_scale if self.loss_scaler is not None else 1.0
        norm = squared_norm(squares, self.topology).sqrt().item() / scale
        self._measured = True
        self._scale = 1.0 if self.clip_grad_norm is None else min(1.0, self.clip_grad_norm / (norm + _EPSILON))
        self.overflowed = self.loss_scaler is not None and not math.isfinite(norm)
        if self.overflowed and self.loss_scaler is not None:
            self.loss_scaler.update_scale(overflow=True)
        return norm

    def _apply(self, shard: Shard, grad: Tensor, group: dict[str, Any], lr: float | None) -> None:
        scale = self._scale
        if self._squares is not None and not self.needs_norm:
            self._squares.append((shard, squared(grad)))
        if self.loss_scaler is not None:
            grad, scale = grad.float(), scale / self.loss_scaler.loss_scale
        if scale != 1.0:
            grad.mul_(scale)
        if self.clip_grad_value is not None:
            grad.clamp_(-self.clip_grad_value, self.clip_grad_value)
        self.update(shard, grad, group["lr"] if lr is None else lr, group["weight_decay"])

    def _finish(self) -> None:
        """End a step whose gradients were applied."""
        self._scale = 1.0
        self._opt_called = True  # else torch's schedulers warn that they come before the optimizer's first step
        if self.loss_scaler is not None:
            self.loss_scaler.update_scale(overflow=False)
        release_parameters(self.model)


def has_float16(model: nn.Module) -> bool:
    """Whether gradients pass through float16, which needs loss scaling."""
    return any(parameter.dtype is torch.float16 for parameter in model.parameters())


def _refuse_values(defaults: dict[str, Any], **clips: float | None) -> None:
    for name, value in clips.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name}={value!r} must be above 0, or None for no clipping.")
    for name in ("lr", "weight_decay"):
        if not defaults[name] >= 0:
            raise ConfigError(f"{name}={defaults[name]!r} must not be negative.")


def _draws(model: nn.Module, parameters: list[nn.Parameter]) -> AlikeDraws:
    others = {parameter.dtype for parameter in parameters} - {torch.bfloat16}
    if others:
        raise ConfigError(
            f"stochastic_rounding is for weights in bfloat16, and some are in {others.pop()}. "
            f"Leave it out, or load the model with dtype=torch.bfloat16."
        )
    return AlikeDraws({parameter: whole for (_, whole), parameter in named(model)})


def _in_order(state_dict: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Yield each parameter's state in the order of the param groups, None where it has none."""
    for group in state_dict["param_groups"]:
        for number in group["params"]:
            yield state_dict["state"].get(number)
