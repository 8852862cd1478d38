"""Whole tensors from the parts that ranks hold: of weights, or of what an optimizer keeps for each of their elements.

Each whole tensor is put together on one rank, so that all ranks of a pipeline stage get about as many bytes to write.
A rank that has all of a tensor anyway copies it and hears from nobody.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collie.parallel._cut import Cut, cut_of
from collie.parallel._shard import is_partitioned, part_shape, shard_of
from collie.parallel._tied import original_of
from collie.parallel._topology import Topology

WEIGHT = "weight"  # the key of a parameter's own values


@dataclass(frozen=True)
class Part:
    """What this rank holds of one parameter.

    shape: of what it would hold without ZeRO.
    cut: how tensor parallelism made that of the whole; None where it is the whole.
    start: of the values, in that shape flattened.
    values: flat; none of them where ZeRO leaves this rank none.
    """

    shape: torch.Size
    cut: Cut | None
    start: int
    values: Tensor


@dataclass(frozen=True)
class Held:
    """What this rank holds of a logical tensor.

    name: of the whole parameter, in the model before it was split.
    key: WEIGHT, or what an optimizer calls it.
    shape: of the whole.
    parts: one for each parameter that this rank holds of the whole one.
    """

    name: str
    key: str
    shape: torch.Size
    parts: tuple[Part, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].values.dtype

    def described(self) -> "Described":
        spans = tuple((part.start, part.values.numel()) for part in self.parts)
        shapes, cuts = tuple(part.shape for part in self.parts), tuple(part.cut for part in self.parts)
        return Described(self.name, self.key, self.shape, self.dtype, self.parts[0].values.is_cuda, spans, shapes, cuts)


@dataclass(frozen=True)
class Described:
    """What other ranks need to know of a `Held`: everything but its values."""

    name: str
    key: str
    shape: torch.Size
    dtype: torch.dtype
    cuda: bool
    spans: tuple[tuple[int, int], ...]  # (start, length) of each part's values
    shapes: tuple[torch.Size, ...]  # of each part
    cuts: tuple[Cut | None, ...]  # of each part

    @property
    def elements(self) -> int:
        return sum(length for _, length in self.spans)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Task:
    """One logical tensor, and the rank that puts it together.

    described: by rank of those of the stage that hold something of it.
    """

    name: str
    key: str
    writer: int
    described: dict[int, Described]

    @property
    def any(self) -> Described:
        return next(iter(self.described.values()))


def held_whole(name: str, key: str, tensor: Tensor) -> Held:
    """Describe a tensor that this rank, and every other one of its stage, has all of."""
    return Held(name, key, tensor.shape, (Part(tensor.shape, None, 0, tensor.detach().reshape(-1)),))


def held_weights(model: nn.Module, topology: Topology) -> list[Held]:
    """Return this rank's weights; a tied weight's copy on the last pipeline stage is none of them."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if original_of(parameter) is None:
            found.setdefault(whole_name(parameter, name), []).append(parameter)
    return [
        Held(name, WEIGHT, whole_shape(parameters[0]), tuple(_weight(p, topology) for p in parameters))
        for name, parameters in found.items()
    ]


def whole_name(parameter: nn.Parameter, name: str) -> str:
    """The name of the whole parameter that this one, called `name` here, is a part of."""
    cut = cut_of(parameter)
    return cut.name if cut is not None else name


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the whole parameter that this one is a part of."""
    cut = cut_of(parameter)
    return cut.whole if cut is not None else part_shape(parameter)


def _weight(parameter: nn.Parameter, topology: Topology) -> Part:
    shape, values = part_shape(parameter), shard_of(parameter, topology).data.view(-1)
    start = 0
    if is_partitioned(parameter):
        start = min(topology.dp_rank * values.numel(), shape.numel())
        values = values[: shape.numel() - start]
    return Part(shape, cut_of(parameter), start, values)


def share_out(described: Sequence[Sequence[Described]], topology: Topology) -> list[Task]:
    """Decide which rank puts each tensor together; every rank decides alike.

    Args:
        described: what each rank of the world holds, in rank order.
        topology: of this rank.

    Returns:
        the tasks of all stages, stage by stage. Among the ranks that hold most of a tensor it falls to the one with
        the fewest bytes so far.
    """
    tasks = []
    ranks = topology.dp_size * topology.tp_size  # of a stage
    for stage in range(topology.pp_size):
        holders: dict[tuple[str, str], dict[int, Described]] = {}
        for rank in range(stage * ranks, (stage + 1) * ranks):
            for one in described[rank]:
                holders.setdefault((one.name, one.key), {})[rank] = one
        load = dict.fromkeys(range(stage * ranks, (stage + 1) * ranks), 0)
        for (name, key), by_rank in holders.items():
            most = max(one.elements for one in by_rank.values())
            writer = min((rank for rank, one in by_rank.items() if one.elements == most), key=lambda r: (load[r], r))
            load[writer] += by_rank[writer].nbytes
            tasks.append(Task(name, key, writer, by_rank))
    return tasks


def assemble(tasks: Sequence[Task], held: Sequence[Held], topology: Topology) -> Iterator[tuple[Task, Tensor]]:
    """Yield the tensors that this rank is to put together, copied to the CPU. Collective over each stage.

    Every rank walks it to the end.
    """
    mine = {(one.name, one.key): one for one in held}
    for task in tasks:
        if task.writer // (topology.dp_size * topology.tp_size) == topology.pp_rank:
            whole = _whole(task, mine.get((task.name, task.key)), topology)
            if whole is not None:
                yield task, whole


def _whole(task: Task, held: Held | None, topology: Topology) -> Tensor | None:
    """Return a whole tensor on its writer, None elsewhere."""
    dp_rank, tp_rank = task.writer // topology.tp_size % topology.dp_size, task.writer % topology.tp_size
    whole: Tensor | None = None
    for number, cut in enumerate(task.any.cuts):
        if cut is None:
            # all tensor-parallel ranks hold the same: those beside the writer have nothing to do
            return _part(task, number, held, dp_rank, topology) if topology.tp_rank == tp_rank else None
        part = _part(task, number, held, dp_rank, topology) if cut.counts_on(topology.tp_rank) else None
        if topology.dp_rank != dp_rank:
            continue
        if topology.rank != task.writer:
            if part is not None:
                dist.send(part.to(topology.device), group=topology.tp_group, group_dst=tp_rank)
            continue
        if whole is None:
            whole = torch.zeros(task.any.shape, dtype=task.any.dtype)
        for source in filter(cut.counts_on, range(topology.tp_size)):
            got = part
            if source != tp_rank:
                got = torch.empty(task.any.shapes[number], dtype=task.any.dtype, device=topology.device)
                dist.recv(got, group=topology.tp_group, group_src=source)
            assert got is not None
            cut.put(got, source, whole)
    return whole


def _part(task: Task, number: int, held: Held | None, to: int, topology: Topology) -> Tensor | None:
    """Return what a tensor-parallel place has of a parameter, from all dp ranks, on the dp rank `to`; else None."""
    spans = {
        dp_rank: one.spans[number]
        for dp_rank in range(topology.dp_size)
        if (one := task.described.get(topology.rank + (dp_rank - topology.dp_rank) * topology.tp_size)) is not None
    }
    shape = task.any.shapes[number]
    sole = spans.get(to, (0, 0)) == (0, shape.numel())
    values = held.parts[number].values.detach() if held is not None else None
    if topology.dp_rank != to:
        if not sole and values is not None and values.numel():
            dist.send(values.contiguous(), group=topology.dp_group, group_dst=to)
        return None
    if sole:
        assert values is not None
        return values.to("cpu", copy=True).view(shape)
    part = torch.zeros(shape.numel(), dtype=task.any.dtype)  # what no rank has is zero
    for source, (start, length) in spans.items():
        if not length:
            continue
        if source == to:
            assert values is not None
            part[start : start + length].copy_(values)
            continue
        got = torch.empty(length, dtype=part.dtype, device=topology.device if task.any.cuda else "cpu")
        dist.recv(got, group=topology.dp_group, group_src=source)
        part[start : start + length].copy_(got)
    return part.view(shape)
