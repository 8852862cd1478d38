"""Where an optimizer keeps what belongs to a parameter: its own tensor, or a range of a flat one that DeepSpeed steps.

This is the one place that knows how DeepSpeed's optimizers lay out their tensors (deepspeed 0.19: runtime/zero/
stage_1_and_2.py, stage3.py, bf16_optimizer.py, fp16/fused_optimizer.py, fp16/unfused_optimizer.py).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from collie.parallel._engine import current_engine
from collie.parallel._shard import as_zero3, part_shape, shard_of
from collie.parallel._topology import Topology

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Place:
    """Elements of this rank's part of a parameter, and where an optimizer keeps what belongs to them.

    parameter: of the model.
    group: index of its param group.
    owner: the key of the optimizer's state: the parameter itself, or a tensor that stands for several.
    shape: of a state tensor that has one element for each of the owner's.
    at: of the first element in a flattened state tensor.
    start: the same element in the flattened part that this rank would hold without ZeRO.
    length: elements; 0 where this rank keeps none of them.
    master: the optimizer's own copy of the weights, flat, of which the elements are [at, at + length); None where it
        steps the parameter's own storage.
    """

    parameter: nn.Parameter
    group: int
    owner: Tensor
    shape: torch.Size
    at: int
    start: int
    length: int
    master: Tensor | None

    @property
    def alone(self) -> bool:
        """Whether the owner stands for this parameter alone, and for all of this rank's part of it, in its shape."""
        return self.shape == part_shape(self.parameter)

    def of(self, tensor: Tensor) -> Tensor:
        """Return this place's elements of a state tensor, flat, sharing its memory."""
        return tensor.view(-1)[self.at : self.at + self.length]


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer whose `state` and `param_groups` are in use: DeepSpeed makes some of torch's anew."""
    inner: torch.optim.Optimizer | None = getattr(_wrapper(model), "optimizer", None)
    return inner if inner is not None else optimizer


def places(model: nn.Module, optimizer: torch.optim.Optimizer, topology: Topology) -> Iterator[Place]:
    """Yield the place of each parameter that `optimizer` updates, in the order of its groups.

    Raises:
        NotImplementedError: DeepSpeed keeps the state where this process cannot see it (on NVMe).
    """
    wrapper = _wrapper(model)
    if wrapper is not None:
        for kind, laid_out in _layouts().items():
            if isinstance(wrapper, kind):
                yield from laid_out(wrapper, topology)
                return
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            yield _own(parameter, number, topology)


def relink(model: nn.Module) -> None:
    """Let DeepSpeed find the state's tensors anew: it remembers those of the first step."""
    wrapper = _wrapper(model)
    if hasattr(wrapper, "_hp_optimizer_states_linked"):
        wrapper._hp_optimizer_states_linked = False


def scaler_state(model: nn.Module) -> dict[str, Any] | None:
    """Return how DeepSpeed scales losses in float16, as numbers; None where it does not."""
    scaler = _scaler(model)
    return {key: getattr(scaler, key) for key in _SCALER if hasattr(scaler, key)} if scaler is not None else None


def set_scaler_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Go on scaling as `scaler_state` said."""
    scaler = _scaler(model)
    for key, value in state.items():
        if hasattr(scaler, key):
            setattr(scaler, key, value)


def _scaler(model: nn.Module) -> Any:
    """ZeRO's optimizers have a scaler that is an object, those of stage 0 have its numbers in their config."""
    wrapper = _wrapper(model)
    scaler = getattr(wrapper, "loss_scaler", None) or getattr(wrapper, "loss_scale_config", None)
    return scaler if getattr(scaler, "dynamic", False) or getattr(scaler, "dynamic_loss_scale", False) else None


def _wrapper(model: nn.Module) -> Any:
    """Return DeepSpeed's optimizer around the one that was given, or None where there is none."""
    engine = current_engine(model)
    return engine.around_optimizer if engine is not None and engine.trains else None


def _layouts() -> dict[type, Callable[[Any, Topology], Iterator[Place]]]:
    """Map each of DeepSpeed's optimizers to the function that knows its tensors."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    return {
        DeepSpeedZeroOptimizer: _stage_1_and_2,
        DeepSpeedZeroOptimizer_Stage3: _stage_3,
        BF16_Optimizer: _bf16,
        FP16_Optimizer: _flat_copies,
        FP16_UnfusedOptimizer: _copies,
    }


def _own(parameter: nn.Parameter, group: int, topology: Topology) -> Place:
    """An optimizer that steps the model's own parameters, or (LOMO) this rank's shard of each."""
    shard = shard_of(parameter, topology)
    data = shard.data
    start, length = 0, data.numel()
    if shard.partitioned:
        total = as_zero3(parameter).ds_numel
        start = min(topology.dp_rank * length, total)
        length = min(length, total - start)
    return Place(parameter, group, parameter, data.shape, 0, start, length, None)


def _stage_1_and_2(wrapper: Any, topology: Topology) -> Iterator[Place]:
    return _mapped(wrapper.bit16_groups, wrapper.single_partition_of_fp32_groups)


def _bf16(wrapper: Any, topology: Topology) -> Iterator[Place]:
    return _mapped(wrapper.bf16_groups, wrapper.fp32_groups_flat_partition)


def _mapped(groups: Iterable[list[nn.Parameter]], flats: Iterable[Tensor]) -> Iterator[Place]:
    """Flat partitions of whole groups: each parameter is mapped to the range of it that this rank has, if any."""
    for number, (parameters, flat) in enumerate(zip(groups, flats, strict=True)):
        for parameter in parameters:
            mapping: Any = getattr(parameter, "_hp_mapping", None)
            if mapping is None:
                yield Place(parameter, number, flat, flat.shape, 0, 0, 0, _copy(flat, parameter))
                continue
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield Place(
                parameter, number, flat, flat.shape, here.start, there.start, here.numel, _copy(flat, parameter)
            )


def _stage_3(wrapper: Any, topology: Topology) -> Iterator[Place]:
    """Flat partitions of sub-groups, in which every parameter has its slice."""
    for number, parameters in enumerate(wrapper.fp16_groups):
        if wrapper._swappable_optimizer_subgroup(number):
            raise NotImplementedError(
                "offload_optimizer to nvme keeps the optimizer's state outside of this process, and checkpoints with "
                "training state cannot read it there. Use the device 'cpu' or none, or save the model alone."
            )
        flat = wrapper.fp32_partitioned_groups_flat[number]
        for parameter in parameters:
            _, at, length = wrapper.grad_position[wrapper.get_param_id(parameter)]
            total = as_zero3(parameter).ds_numel
            start = min(topology.dp_rank * length, total)
            length = min(length, total - start)
            group = wrapper.sub_group_to_group_id[number]
            yield Place(parameter, group, flat, flat.shape, at, start, length, _copy(flat, parameter))


def _flat_copies(wrapper: Any, topology: Topology) -> Iterator[Place]:
    """One flat copy of each whole group."""
    for number, (parameters, flat) in enumerate(zip(wrapper.fp16_groups, wrapper.fp32_groups_flat, strict=True)):
        at = 0
        for parameter in parameters:
            yield Place(parameter, number, flat, flat.shape, at, 0, parameter.numel(), _copy(flat, parameter))
            at += parameter.numel()


def _copies(wrapper: Any, topology: Topology) -> Iterator[Place]:
    """A copy of each parameter."""
    for number, (parameters, copies) in enumerate(zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)):
        for parameter, copy in zip(parameters, copies, strict=True):
            yield Place(parameter, number, copy, copy.shape, 0, 0, parameter.numel(), _copy(copy, parameter))


def _copy(flat: Tensor, parameter: nn.Parameter) -> Tensor | None:
    """Return the copy where it says more than the weights do: in their own dtype it is equal to them."""
    return flat.data if flat.dtype != parameter.dtype else None
