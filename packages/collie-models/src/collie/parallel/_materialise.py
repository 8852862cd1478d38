"""From a model on `meta` to weights on this rank's device: whole, or this rank's part, or a flat slice of either.

A model that a plan has split holds parts of parameters, each with a `Cut` that says of which one; ZeRO-3 divides what
a rank holds into flat slices over the dp ranks.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from collie.config import CollieConfig
from collie.parallel._added import Choice, is_added, mark_added, of_the_model, plain_name, whole_name
from collie.parallel._cut import cut_of, mark
from collie.parallel._deepspeed_config import deepspeed_config
from collie.parallel._engine import current_engine, deepspeed_module, engine_for
from collie.parallel._partial import is_partial, sum_gradient
from collie.parallel._shard import as_zero3, is_partitioned, part_shape, shard_of
from collie.parallel._tied import mark_copy, mark_counted, original_of
from collie.parallel._topology import Topology


class Fill(Protocol):
    """Where values come from: a checkpoint, or an initialisation."""

    def __call__(
        self, name: str, shape: torch.Size, start: int, stop: int, columns: tuple[int, int] | None = None
    ) -> Tensor:
        """Return elements [start, stop) of the flattened parameter `name`, on the CPU or the device.

        Args:
            name: as in the model before it was split.
            shape: of the whole parameter.
            start, stop: of the whole, flattened; or where columns are given, of these alone, flattened.
            columns: a range of the second dimension; given only where tensor parallelism asks for one.
        """
        ...


def materialise(model: nn.Module, config: CollieConfig, topology: Topology, dtype: torch.dtype, fill: Fill) -> None:
    """Give every parameter of a model on `meta` its storage and values, in place.

    A rank asks `fill` for what it keeps and nothing else, one parameter at a time: its part of what a plan has split,
    and under ZeRO-3 its slice of that. Then the model ends with a forward-only engine, and can be called at once.
    A parameter that two modules share (a tied head) is made once and stays shared. Parameters that have storage
    already, in a model of which only some are new, stay as they are.
    """
    partition = _partitioner(config, topology, dtype) if config.zero_stage == 3 else None
    for name, (parameter, owners) in _owners(model).items():
        if not parameter.is_meta:
            continue
        made = _make(parameter, dtype, topology)
        if partition is not None:
            partition(made)
        for module, attribute in owners:
            module._parameters[attribute] = made
        _write(made, plain_name(name), topology, fill)
    if partition is not None:
        engine_for(model, config)


def refill(model: nn.Module, topology: Topology, fill: Fill, only: Choice = of_the_model) -> None:
    """Replace the values of a model that is already materialised, in any layout, in place.

    `only`: which of its parameters; unless given, all but those of adapters.
    """
    engine = current_engine(model)
    if engine is not None:
        engine.release_parameters()
    for name, parameter in model.named_parameters():
        if only(whole_name(name, parameter), parameter):
            _write(parameter, plain_name(name), topology, fill)
    if engine is not None:
        engine.refresh_master_weights()


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


def _make(parameter: nn.Parameter, dtype: torch.dtype, topology: Topology) -> nn.Parameter:
    storage = torch.empty(parameter.shape, dtype=dtype, device=topology.device)
    made = nn.Parameter(storage, requires_grad=parameter.requires_grad)
    if is_partial(parameter):
        sum_gradient(made, topology)
    cut, original = cut_of(parameter), original_of(parameter)
    if cut is not None:
        mark(made, cut)
    if original is not None:
        mark_copy(made, original)
    if is_added(parameter):
        mark_added(made)
    if topology.model_group is not None:
        mark_counted(made, topology)
    return made


def _partitioner(config: CollieConfig, topology: Topology, dtype: torch.dtype) -> Callable[[nn.Parameter], None]:
    """Return a function that splits one parameter over the dp ranks as ZeRO-3 does, without exchanging values."""
    deepspeed = deepspeed_module()
    init = deepspeed.zero.Init(
        module=nn.Module(),
        data_parallel_group=topology.group("dp") if topology.tp_size > 1 else topology.dp_group,
        config_dict_or_path=deepspeed_config(config, dtype),
        dtype=dtype,
    )

    def partition(parameter: nn.Parameter) -> None:
        init._convert_to_deepspeed_param(parameter)
        as_zero3(parameter).partition()

    return partition


def _write(parameter: nn.Parameter, name: str, topology: Topology, fill: Fill) -> None:
    """Write what this rank keeps; padding, at the end of a slice or of a vocabulary, is zero: norms stay exact."""
    target = shard_of(parameter, topology).data.view(-1)
    total = part_shape(parameter).numel()
    start = min(topology.dp_rank * target.numel(), total) if is_partitioned(parameter) else 0
    stop = min(start + target.numel(), total)
    if stop - start < target.numel():
        target.zero_()
    copy_elements(target[: stop - start], parameter, name, start, topology, fill)


def copy_elements(
    target: Tensor, parameter: nn.Parameter, name: str, start: int, topology: Topology, fill: Fill
) -> None:
    """Write into `target`, flat, the elements from `start` on of this rank's flattened part of a parameter.

    Args:
        target: of the parameter's values, or of others that it has one of for each element.
        parameter: says which part it is.
        name: in this rank's model.
        start: of the part; ZeRO counts as no division.
        topology: of this rank.
        fill: where the values come from.
    """
    cut = cut_of(parameter)
    source = original_of(parameter) or (cut.name if cut is not None else name)
    stop = start + target.numel()
    if cut is None:
        if start < stop:
            target.copy_(fill(source, part_shape(parameter), start, stop))
        return
    target.zero_()
    for piece in cut.pieces(topology.tp_rank, start, stop):
        columns = {} if piece.columns is None else {"columns": piece.columns}
        values = fill(source, cut.whole, piece.start, piece.stop, **columns)
        target[piece.at - start :][: values.numel()].copy_(values)
