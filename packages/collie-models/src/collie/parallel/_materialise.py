"""From a model on `meta` to weights on this rank's device: whole, or under ZeRO-3 only this rank's slices."""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collie.config import CollieConfig
from collie.parallel._deepspeed_config import deepspeed_config
from collie.parallel._engine import current_engine, deepspeed_module, engine_for
from collie.parallel._shard import as_zero3, is_partitioned, shard_of
from collie.parallel._topology import Topology


class Fill(Protocol):
    """Where values come from: a checkpoint, or an initialisation."""

    def __call__(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened parameter `name`, on the CPU or the device."""
        ...


def materialise(model: nn.Module, config: CollieConfig, topology: Topology, dtype: torch.dtype, fill: Fill) -> None:
    """Give every parameter of a model on `meta` its storage and values, in place.

    Without ZeRO-3 each rank holds all of them. With it a rank asks `fill` for the slice it keeps and nothing else,
    one parameter at a time, and the model ends with a forward-only engine, so that it can be called at once.
    A parameter that two modules share (a tied head) is made once and stays shared.
    """
    partition = _partitioner(config, topology, dtype) if config.zero_stage == 3 else None
    for name, (parameter, owners) in _owners(model).items():
        made = _make(parameter, dtype, topology.device)
        if partition is not None:
            partition(made)
        for module, attribute in owners:
            module._parameters[attribute] = made
        _write(made, name, topology, fill)
    if partition is not None:
        engine_for(model, config)


def refill(model: nn.Module, topology: Topology, fill: Fill) -> None:
    """Replace the values of a model that is already materialised, in any layout, in place."""
    engine = current_engine(model)
    if engine is not None:
        engine.release_parameters()
    for name, parameter in model.named_parameters():
        _write(parameter, name, topology, fill)
    if engine is not None:
        engine.refresh_master_weights()


def full_parameters(model: nn.Module, topology: Topology) -> Iterator[tuple[str, Tensor | None]]:
    """Yield (name, whole tensor on the CPU) on rank 0 and (name, None) elsewhere, one parameter at a time.

    Collective: every rank must walk it to the end. Rank 0 never holds more than one whole parameter, and where it
    holds the parameter anyway the tensor shares its memory.
    """
    for name, parameter in model.named_parameters():
        whole = _gather(parameter, topology) if is_partitioned(parameter) else parameter.data
        yield name, whole.detach().cpu() if topology.rank == 0 and whole is not None else None


def _owners(model: nn.Module) -> dict[str, tuple[nn.Parameter, list[tuple[nn.Module, str]]]]:
    """Return each parameter once, under its first name, with every module that holds it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[nn.Parameter, list[tuple[nn.Module, str]]]] = {
        name: (parameter, []) for name, parameter in model.named_parameters()
    }
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                found[names[id(parameter)]][1].append((module, attribute))
    return found


def _make(parameter: nn.Parameter, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    storage = torch.empty(parameter.shape, dtype=dtype, device=device)
    return nn.Parameter(storage, requires_grad=parameter.requires_grad)


def _partitioner(config: CollieConfig, topology: Topology, dtype: torch.dtype) -> Callable[[nn.Parameter], None]:
    """Return a function that splits one parameter over the dp ranks as ZeRO-3 does, without exchanging values."""
    deepspeed = deepspeed_module()
    init = deepspeed.zero.Init(
        module=nn.Module(),
        data_parallel_group=topology.dp_group,
        config_dict_or_path=deepspeed_config(config, dtype),
        dtype=dtype,
    )

    def partition(parameter: nn.Parameter) -> None:
        init._convert_to_deepspeed_param(parameter)
        as_zero3(parameter).partition()

    return partition


def _write(parameter: nn.Parameter, name: str, topology: Topology, fill: Fill) -> None:
    """Write this rank's part; the padding at the end of the last ZeRO-3 slice is zero, so that norms stay exact."""
    target = shard_of(parameter, topology).data
    if not is_partitioned(parameter):
        target.copy_(fill(name, parameter.shape, 0, parameter.numel()).view(parameter.shape))
        return
    whole = as_zero3(parameter)
    length, total = target.numel(), whole.ds_numel
    start = min(topology.dp_rank * length, total)
    stop = min(start + length, total)
    target.zero_()
    if stop > start:
        target[: stop - start].copy_(fill(name, whole.ds_shape, start, stop))


def _gather(parameter: nn.Parameter, topology: Topology) -> Tensor | None:
    """Gather a parameter's slices on the first rank of its dp group; None on the others."""
    whole = as_zero3(parameter)
    part = whole.ds_tensor.data
    if topology.dp_group is None:
        return part[: whole.ds_numel].view(whole.ds_shape)
    first = topology.dp_rank == 0
    parts = [torch.empty_like(part) for _ in range(topology.dp_size)] if first else None
    dist.gather(part, parts, group=topology.dp_group, group_dst=0)
    return torch.cat(parts)[: whole.ds_numel].view(whole.ds_shape) if parts is not None else None
