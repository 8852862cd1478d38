"""What a rank owns of a parameter: all that it holds, or under ZeRO-3 a flat slice; how a gradient comes to match it.

An optimizer that owns its backward pass (LOMO) sees parameters only through this, so it has no ZeRO code in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collie.parallel._tied import counts_here
from collie.parallel._topology import Topology


class Zero3Parameter(Protocol):
    """What DeepSpeed adds to a parameter that ZeRO-3 has split."""

    ds_tensor: Tensor  # this rank's slice, flat, padded to equal lengths
    ds_numel: int  # elements of the whole, without padding
    ds_shape: torch.Size

    def partition(self) -> None:
        """Keep this rank's slice and let go of the whole."""


def as_zero3(parameter: nn.Parameter) -> Zero3Parameter:
    """The same object, with the attributes that ZeRO-3 gave it."""
    return cast(Zero3Parameter, parameter)


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 has split this parameter over the dp ranks."""
    return hasattr(parameter, "ds_tensor")


def part_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter before ZeRO-3 has split it; tensor parallelism may have, before that."""
    return as_zero3(parameter).ds_shape if is_partitioned(parameter) else parameter.shape


@dataclass(frozen=True)
class Shard:
    """This rank's part of a parameter."""

    parameter: nn.Parameter
    topology: Topology
    partitioned: bool

    @property
    def data(self) -> Tensor:
        """What this rank owns: the parameter itself, or its flat slice, padded at the end to equal lengths."""
        return as_zero3(self.parameter).ds_tensor.data if self.partitioned else self.parameter.data

    def reduce(self, grad: Tensor) -> Tensor:
        """Average a full gradient over the dp ranks and return the part that belongs to `data`."""
        group, ranks = self.topology.dp_group, self.topology.dp_size
        if not self.partitioned:
            if group is not None:
                dist.all_reduce(grad, group=group)
                grad.div_(ranks)
            return grad
        flat = grad.flatten()
        length = self.data.numel()
        padding = length * ranks - flat.numel()
        if padding:
            flat = nn.functional.pad(flat, (0, padding))
        if group is None:
            return flat
        part = torch.empty(length, dtype=flat.dtype, device=flat.device)
        dist.reduce_scatter_tensor(part, flat, group=group)
        return part.div_(ranks)


def shard_of(parameter: nn.Parameter, topology: Topology) -> Shard:
    """Describe this rank's part of `parameter`."""
    return Shard(parameter, topology, is_partitioned(parameter))


def squared_norm(squares: Iterable[tuple[Shard, Tensor]], topology: Topology) -> Tensor:
    """Return the squared norm of the whole gradient from the squared norms of reduced parts, equal on every rank.

    Parts that ZeRO-3 splits are summed over the dp ranks, and all of them over the ranks that hold the replica. What
    several of these hold counts once.
    """
    sums = torch.zeros(2, dtype=torch.float32, device=topology.device)  # [whole on each dp rank, split over dp]
    for shard, square in squares:
        if counts_here(shard.parameter, topology):
            sums[int(shard.partitioned)] += square
    if topology.dp_group is not None:
        dist.all_reduce(sums[1], group=topology.dp_group)
    total = sums.sum()
    if topology.model_group is not None:
        dist.all_reduce(total, group=topology.model_group)
    return total


def whole_part(parameter: nn.Parameter, topology: Topology) -> Tensor:
    """Return all that this rank's tensor-parallel place holds of a parameter. Collective over dp under ZeRO-3."""
    if not is_partitioned(parameter):
        return parameter.detach()
    zero3 = as_zero3(parameter)
    own = zero3.ds_tensor.data
    parts = [own]
    if topology.dp_group is not None:
        parts = [torch.empty_like(own) for _ in range(topology.dp_size)]
        dist.all_gather(parts, own, group=topology.dp_group)
    return torch.cat(parts)[: zero3.ds_numel].view(zero3.ds_shape)


def replace_part(parameter: nn.Parameter, value: Tensor, topology: Topology) -> None:
    """Give a parameter new values, in place: `value` is what this rank's tensor-parallel place holds of it."""
    target = shard_of(parameter, topology).data.view(-1)
    start = topology.dp_rank * target.numel() if is_partitioned(parameter) else 0
    own = value.reshape(-1)[start : start + target.numel()]
    target.zero_()[: own.numel()].copy_(own)
