"""AdaLoRA (Zhang et al. 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning") under ZeRO 0 to 3.

ΔW = P·Λ·Q in each layer. Two things happen besides what LoRA does. P and Q are kept close to orthogonal by a term of
the loss, whose gradient each layer adds where its backward pass begins. And after each update PEFT's allocator weighs
parameters by |value · gradient| and sets the least important of Λ to zero: it works on copies that all ranks hold
whole, and so comes to the same on each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collie.adapters._supported import peft_module
from collie.config import CollieConfig
from collie.parallel import Topology, active_topology, current_engine, replace_part, whole_part

_PARTS = ("lora_A", "lora_E", "lora_B")  # Q, Λ, P
_ESTIMATES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of PEFT's allocator: eq. 8 to 10 of the paper, by parameter
_KEPT = "kept"  # of Λ: which elements the last allocation has left


@dataclass(frozen=True)
class AdapterState:
    """What an adapter's training goes on from, besides the adapter's values and the optimizer's state.

    updates: how many there were.
    tensors: by the parameter's name and a key: in the parameter's whole shape, equal on all ranks.
    """

    updates: int
    tensors: Mapping[tuple[str, str], Tensor]


class Allocation:
    """What is known of the importance of an adapter's parameters, and which of Λ are left.

    Args:
        model: with the adapter, materialised.
        layers: PEFT's SVDLinear layers by name.
        adapter: the adapter's name.
        peft_config: the AdaLoraConfig.
        topology: its dp ranks sum gradients.
    """

    def __init__(
        self, model: nn.Module, layers: dict[str, nn.Module], adapter: str, peft_config: Any, topology: Topology
    ) -> None:
        self._model, self._topology, self._config = model, topology, peft_config
        self._parameters: dict[str, nn.Parameter] = {}
        self._gradients: dict[str, Tensor] = {}
        for name, layer in layers.items():
            for part in _PARTS:
                key = f"{name.replace('.', '/')}.{part}.{adapter}"
                self._watch(key, layer.get_submodule(part).get_parameter(adapter))
        self._copies = _Copies({key: whole_part(p, topology).clone() for key, p in self._parameters.items()})
        allocator = peft_module().tuners.adalora.layer.RankAllocator
        self._allocator = allocator(self._copies, peft_config, adapter)
        self._pattern: Any = None
        self._step = 0

    def _watch(self, key: str, parameter: nn.Parameter) -> None:
        """Add up the gradients that backward passes give a parameter, on this rank."""
        self._parameters[key] = parameter

        def add(gradient: Tensor) -> None:
            known = self._gradients.get(key)
            self._gradients[key] = gradient.detach().float().clone() if known is None else known.add_(gradient)

        parameter.register_hook(add)

    def forget(self) -> None:
        """Let a step's gradients, which were not applied, count for nothing."""
        self._gradients.clear()

    def state(self) -> AdapterState:
        """Return what is known so far; its tensors are the allocator's own."""
        estimates: dict[str, dict[str, Tensor]] = {key: getattr(self._allocator, key) for key in _ESTIMATES}
        tensors = {(_name(n), key): value for key, by_name in estimates.items() for n, value in by_name.items()}
        for n, kept in (self._pattern or {}).items():
            tensors[_name(n), _KEPT] = torch.tensor(kept).view(-1, 1)
        return AdapterState(self._step, tensors)

    def go_on_from(self, state: AdapterState) -> None:
        """Know what `state` said."""
        self._gradients.clear()
        self._step, self._pattern = state.updates, None
        self._allocator.reset_ipt()
        for key in self._parameters:
            for name in _ESTIMATES:
                if (value := state.tensors.get((_name(key), name))) is not None:
                    getattr(self._allocator, name)[key] = value.to(self._topology.device)
            if (kept := state.tensors.get((_name(key), _KEPT))) is not None:
                self._pattern = (self._pattern or {}) | {key: kept.view(-1).tolist()}

    @torch.no_grad()
    def after_update(self) -> None:
        """Take note of a step's gradients, and set to zero what the schedule says. Collective over the dp ranks."""
        step, last = self._step, self._config.total_step - self._config.tfinal
        self._step += 1
        for key, parameter in self._parameters.items():
            self._copies.set(key, whole_part(parameter, self._topology).float(), self._gradient(key, parameter))
        self._gradients.clear()
        before = self._copies.diagonals()
        if step <= last:
            _, pattern = self._allocator.update_and_allocate(self._copies, step, force_mask=step == last)
            self._pattern = pattern or self._pattern
        elif self._pattern is not None:
            self._allocator.mask_using_rank_pattern(self._copies, self._pattern)
        self._write({key: value for key, value in self._copies.diagonals().items() if not value.equal(before[key])})

    def _write(self, diagonals: dict[str, Tensor]) -> None:
        engine = current_engine(self._model)
        if diagonals and engine is not None:
            engine.release_parameters()  # small ones stay gathered from step to step
        for key, value in diagonals.items():
            replace_part(self._parameters[key], value, self._topology)
            if engine is not None and engine.trains:
                engine.write_master(self._parameters[key], value)

    def _gradient(self, key: str, parameter: nn.Parameter) -> Tensor:
        """The step's gradient: each micro-batch's was multiplied by what DeepSpeed's means over dp divide by."""
        shape = whole_part(parameter, self._topology).shape
        gradient = self._gradients.get(key, torch.zeros(shape, device=self._topology.device))
        if self._topology.dp_group is not None:
            dist.all_reduce(gradient, group=self._topology.dp_group)
            gradient /= self._topology.dp_size
        return gradient


def _name(key: str) -> str:
    """The parameter's name, for a key of the copies."""
    return key.replace("/", ".")


class _Copies(nn.Module):
    """Parameters by names that PEFT's allocator looks for, such as "layers/0/attention/q.lora_A.default"."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        for key, value in values.items():
            site, part, adapter = key.split(".")
            for name in (site, f"{site}.{part}"):
                parent, _, last = name.rpartition(".")
                if last not in dict(self.get_submodule(parent).named_children()):
                    self.get_submodule(parent).add_module(last, nn.Module())
            self.get_submodule(f"{site}.{part}").register_parameter(adapter, nn.Parameter(value.float()))

    def set(self, key: str, value: Tensor, gradient: Tensor) -> None:
        parameter = self.get_parameter(key)
        parameter.data, parameter.grad = value.clone(), gradient

    def diagonals(self) -> dict[str, Tensor]:
        """The Λ, as they are now."""
        return {name: p.detach().clone() for name, p in self.named_parameters() if ".lora_E." in name}


_allocations: WeakKeyDictionary[nn.Module, Allocation] = WeakKeyDictionary()


def allocate_ranks(
    model: nn.Module, layers: dict[str, nn.Module], adapter: str, peft_config: Any, config: CollieConfig
) -> None:
    """Let a model's AdaLoRA layers be regularised in training, and their ranks be dealt out after each update."""
    weight = peft_config.orth_reg_weight / (2 * len(layers))
    for layer in layers.values():
        layer.register_forward_hook(_Orthogonal(adapter, weight, config))
    _allocations[model] = Allocation(model, layers, adapter, peft_config, active_topology())


def after_step(model: nn.Module, applied: bool) -> None:
    """Do what a model's adapter does after a step; nothing, for all but AdaLoRA.

    applied: whether the optimizer updated. Where the gradients were not finite, it may have not.
    """
    if (allocation := _allocations.get(model)) is not None:
        allocation.after_update() if applied else allocation.forget()


def adapter_state(model: nn.Module) -> AdapterState | None:
    """Return what the training of a model's adapter has learnt besides values; None, for all but AdaLoRA."""
    allocation = _allocations.get(model)
    return allocation.state() if allocation is not None else None


def put_adapter_state(model: nn.Module, state: AdapterState) -> None:
    """Let the training of a model's adapter go on from what `adapter_state` returned."""
    _allocations[model].go_on_from(state)


class _Orthogonal:
    """Adds weight · (‖PᵀP − I‖ + ‖QQᵀ − I‖) to the loss, wherever the layer's output goes.

    It counts once a step: DeepSpeed averages over dp ranks, and here it is divided by the step's micro-batches.
    """

    def __init__(self, adapter: str, weight: float, config: CollieConfig) -> None:
        self._adapter, self._weight, self._config = adapter, weight, config

    def __call__(self, layer: nn.Module, given: Sequence[Any], result: Tensor) -> Tensor | None:
        if not (layer.training and torch.is_grad_enabled()):
            return None
        q, p = (layer.get_submodule(part).get_parameter(self._adapter) for part in ("lora_A", "lora_B"))
        term = _distance(q @ q.T) + _distance(p.T @ p)
        factor = self._weight / self._config.gradient_accumulation_steps
        added: Tensor = _AddToLoss.apply(result, term, factor)
        return added


def _distance(square: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(square - torch.eye(len(square), dtype=square.dtype, device=square.device))


class _AddToLoss(torch.autograd.Function):
    """Returns `x` as it is; in the backward pass `factor` is the gradient of `term`, whatever the loss is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, term: Tensor, factor: float) -> Tensor:
        ctx.factor, ctx.dtype = factor, term.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, torch.full((), ctx.factor, dtype=ctx.dtype, device=grad.device), None
