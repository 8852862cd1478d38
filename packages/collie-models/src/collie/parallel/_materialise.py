"""From a model on `meta` to weights on this rank's device: whole, or this rank's part, or a flat slice of either.

A model that a plan has split holds parts of parameters, each with a `Cut` that says of which one; ZeRO-3 divides what
a rank holds into flat slices over the dp ranks.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collie.config import CollieConfig
from collie.parallel._added import is_added, mark_added, plain_name
from collie.parallel._cut import cut_of, mark
from collie.parallel._deepspeed_config import deepspeed_config
from collie.parallel._engine import current_engine, deepspeed_module, engine_for
from collie.parallel._partial import is_partial, sum_gradient
from collie.parallel._shard import as_zero3, is_partitioned, shard_of
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


Choice = Callable[[str, nn.Parameter], bool]  # of a parameter, and its name in the model before it was split


def of_the_model(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is the model's own and no adapter's."""
    return not is_added(parameter)


def whole_name(name: str, parameter: nn.Parameter) -> str:
    """Return what a model's parameter is called before the model is split, and without adapters."""
    cut = cut_of(parameter)
    return cut.name if cut is not None else plain_name(name)


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


def full_parameters(
    model: nn.Module, topology: Topology, *, copies: bool = False, only: Choice = of_the_model
) -> Iterator[tuple[str, Tensor | None]]:
    """Yield (name, whole tensor on the CPU) where this rank leads its stage, else (name, None); one at a time.

    Names and shapes are those of the model before it was split; of a pipeline stage its own parameters come, with
    `copies` also the copy of a tied one that the first stage has. `only` chooses among them; unless given, all but
    those of adapters come. Collective: every rank must walk it to the end. A
    leader never holds more than one whole parameter and its parts, and where it holds the parameter anyway the tensor
    shares its memory.
    """
    wholes: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if only(whole_name(name, parameter), parameter) and (copies or original_of(parameter) is None):
            wholes.setdefault(whole_name(name, parameter), []).append(parameter)
    for name, parameters in wholes.items():
        if cut_of(parameters[0]) is not None:
            yield name, _assemble(parameters, topology)
            continue
        whole = _held(parameters[0], topology)
        yield name, whole.detach().cpu() if leads_stage(topology) and whole is not None else None


def leads_stage(topology: Topology) -> bool:
    """Whether this rank is the one of its pipeline stage that whole tensors are gathered on; without stages rank 0."""
    return topology.dp_rank == 0 and topology.tp_rank == 0


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
        mark(made, cut, topology)
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
    if is_partitioned(parameter):
        shape, total = as_zero3(parameter).ds_shape, as_zero3(parameter).ds_numel
        start = min(topology.dp_rank * target.numel(), total)
        stop = min(start + target.numel(), total)
    else:
        shape, start, stop = parameter.shape, 0, parameter.numel()
    cut = cut_of(parameter)
    if cut is not None or stop - start < target.numel():
        target.zero_()
    source = original_of(parameter) or (cut.name if cut is not None else name)
    if cut is None:
        if start < stop:
            target[: stop - start].copy_(fill(source, shape, start, stop))
        return
    for piece in cut.pieces(topology.tp_rank, start, stop):
        columns = {} if piece.columns is None else {"columns": piece.columns}
        values = fill(source, cut.whole, piece.start, piece.stop, **columns)
        target[piece.at - start :][: values.numel()].copy_(values)


def _assemble(parameters: list[nn.Parameter], topology: Topology) -> Tensor | None:
    """Return a whole parameter on its stage's leader, on the CPU, from the parts of the tp ranks; None elsewhere."""
    whole: Tensor | None = None
    for parameter in parameters:
        cut, part = cut_of(parameter), _held(parameter, topology)
        assert cut is not None
        if part is None:  # the first dp rank has it
            continue
        parts = [torch.empty_like(part) for _ in range(topology.tp_size)] if topology.tp_rank == 0 else None
        if topology.tp_group is not None:
            dist.gather(part.contiguous(), parts, group=topology.tp_group, group_dst=0)
        if parts is None or not leads_stage(topology):
            continue
        if whole is None:
            whole = torch.empty(cut.whole, dtype=part.dtype)
        for tp_rank, part in enumerate(parts):
            cut.put(part, tp_rank, whole)
    return whole


def _held(parameter: nn.Parameter, topology: Topology) -> Tensor | None:
    """Return what this rank's tensor-parallel place holds of a parameter; None where another dp rank gathers it."""
    return _gather(parameter, topology) if is_partitioned(parameter) else parameter.detach()


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
