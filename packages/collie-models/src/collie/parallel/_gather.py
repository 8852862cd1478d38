"""From what the ranks of a pipeline stage hold to whole parameters, one at a time, on the stage's leader."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collie.parallel._added import Choice, of_the_model, whole_name
from collie.parallel._cut import cut_of
from collie.parallel._shard import as_zero3, is_partitioned, shard_of
from collie.parallel._tied import original_of
from collie.parallel._together import together_in_stage
from collie.parallel._topology import Topology


def full_parameters(
    model: nn.Module, topology: Topology, *, copies: bool = False, only: Choice = of_the_model
) -> Iterator[tuple[str, Tensor | None]]:
    """Yield (name, whole tensor on the CPU) where this rank leads its stage, else (name, None); one at a time.

    Names and shapes are those of the model before it was split; of a pipeline stage its own parameters come, with
    `copies` also the copy of a tied one that the first stage has. `only` chooses among them, alike on all ranks of a
    stage; unless given, all but those of adapters come. Collective: every rank must walk it to the end. A leader never
    holds more than one whole parameter and its parts, and where it holds the parameter anyway the tensor shares its
    memory.

    Raises:
        CheckpointError: a rank has no room for its part in it; on every rank of its stage, where the walk ends.
    """
    wholes: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        whole = whole_name(name, parameter)
        if only(whole, parameter) and (copies or original_of(parameter) is None):
            wholes.setdefault(whole, []).append(parameter)
    every = [parameter for parts in wholes.values() for parameter in parts]
    exchanged = any(cut_of(parameter) is not None or is_partitioned(parameter) for parameter in every)
    for name, parameters in wholes.items():
        # what can be lacking is taken before the exchange, which others would wait in for a rank that has failed
        make = partial(_make_room, parameters, topology)
        room = together_in_stage(topology, f"{name} could not be gathered", make) if exchanged else make()
        yield name, _gather(parameters, room, topology)


def leads_stage(topology: Topology) -> bool:
    """Whether this rank is the one of its pipeline stage that whole tensors are gathered on; without stages rank 0."""
    return topology.dp_rank == 0 and topology.tp_rank == 0


@dataclass(frozen=True)
class _Room:
    """The memory in which a rank takes part in gathering one whole parameter.

    slices: for each of its parameters [dp, flat slice] on the device, where this rank gathers what ZeRO-3 has split.
    parts: for each of its parameters [tp, *part] on the device, where this rank leads its stage and a plan has cut it.
    whole: on the CPU, where this rank leads its stage and does not hold the whole there anyway.
    """

    slices: list[Tensor | None]
    parts: list[Tensor | None]
    whole: Tensor | None


def _make_room(parameters: list[nn.Parameter], topology: Topology) -> _Room:
    """Make room for the parameters that are one whole together; what is not for this rank to hold is None."""
    slices: list[Tensor | None] = [None] * len(parameters)
    parts: list[Tensor | None] = [None] * len(parameters)
    whole: Tensor | None = None
    for place, parameter in enumerate(parameters):
        held, cut = shard_of(parameter, topology).data, cut_of(parameter)
        if is_partitioned(parameter) and topology.dp_group is not None and topology.dp_rank == 0:
            slices[place] = held.new_empty((topology.dp_size, held.numel()))
        if not leads_stage(topology):
            continue
        if cut is not None and topology.tp_group is not None:
            parts[place] = held.new_empty((topology.tp_size, *cut.shape))
        if whole is None and (cut is not None or held.device.type != "cpu"):
            shape = as_zero3(parameter).ds_shape if is_partitioned(parameter) else parameter.shape
            whole = torch.empty(shape if cut is None else cut.whole, dtype=held.dtype)
    return _Room(slices, parts, whole)


def _gather(parameters: list[nn.Parameter], room: _Room, topology: Topology) -> Tensor | None:
    """Return a whole parameter, on its stage's leader and on the CPU, from what the ranks hold; None elsewhere."""
    for parameter, slices, parts in zip(parameters, room.slices, room.parts, strict=True):
        part = _gather_slices(parameter, slices, topology) if is_partitioned(parameter) else parameter.detach()
        if part is None:  # the first dp rank has it
            continue
        cut = cut_of(parameter)
        if cut is None:
            if not leads_stage(topology):
                return None
            return part if room.whole is None else room.whole.copy_(part)
        if topology.tp_group is not None and topology.dp_rank == 0:
            into = list(parts) if parts is not None else None
            dist.gather(part.contiguous(), into, group=topology.tp_group, group_dst=0)
        if room.whole is not None:
            for tp_rank, of_rank in enumerate(parts if parts is not None else [part]):
                cut.put(of_rank, tp_rank, room.whole)
    return room.whole


def _gather_slices(parameter: nn.Parameter, slices: Tensor | None, topology: Topology) -> Tensor | None:
    """Gather what ZeRO-3 has split, on the first rank of its dp group; None on the others."""
    whole, held = as_zero3(parameter), shard_of(parameter, topology).data
    if topology.dp_group is not None:
        dist.gather(held, list(slices) if slices is not None else None, group=topology.dp_group, group_dst=0)
        if slices is None:
            return None
        held = slices.view(-1)
    return held[: whole.ds_numel].view(whole.ds_shape)
