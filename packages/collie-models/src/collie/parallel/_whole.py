"""Sums over a whole parameter of which each rank has a part, and what of them belongs to the elements of a part.

For optimizers whose update looks at whole matrices, as AdaLomo's does: what they compute from these sums is the same in
every layout, to rounding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from collie.parallel._cut import cut_of
from collie.parallel._shard import Shard, as_zero3


@dataclass(frozen=True)
class _Band:
    """Consecutive rows of this rank's matrix, and where they stand in the whole."""

    at: int
    start: int
    rows: int


@dataclass(frozen=True)
class Whole:
    """The whole parameter that a shard is a part of, over tensor-parallel and ZeRO-3 ranks.

    A parameter of more than two dimensions is a matrix of its first by all the others, [R, C] below; [r, c] is this
    rank's part of it, rows of which it holds only some elements filled up with zeros.
    """

    shard: Shard

    @property
    def shape(self) -> torch.Size:
        """The shape of the parameter in the model before it was split."""
        cut = cut_of(self.shard.parameter)
        return cut.whole if cut is not None else self._part

    @property
    def numel(self) -> int:
        return self.shape.numel()

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(R, C), of a parameter of two or more dimensions."""
        return self.shape[0], math.prod(self.shape[1:])

    def held(self, values: Tensor) -> Tensor:
        """Leave out, of values in the shape of `shard.data`, those that pad a ZeRO-3 slice; a view."""
        if not self.shard.partitioned:
            return values
        start, stop = self._slice
        return values[: stop - start]

    def matrix(self, values: Tensor) -> Tensor:
        """Copy values in the shape of `shard.data` into a float32 matrix [r, c]."""
        width = math.prod(self._part[1:])
        if not self.shard.partitioned:
            return values.to(torch.float32, copy=True).view(-1, width)
        start, stop = self._slice
        first, last = start // width, -(-stop // width)
        matrix = torch.zeros(last - first, width, dtype=torch.float32, device=values.device)
        self.elements(matrix).copy_(values[: stop - start])
        return matrix

    def elements(self, matrix: Tensor) -> Tensor:
        """Return a matrix's elements in the shape of `held(shard.data)`; a view, the inverse of `matrix`."""
        if not self.shard.partitioned:
            return matrix.view(self._part)
        start, stop = self._slice
        return matrix.view(-1)[start % matrix.shape[1] :][: stop - start]

    def marginals(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return this rank's shares of the sums over columns [R] and over rows [C] of a matrix [r, c]."""
        if self._undivided:
            return matrix.sum(1), matrix.sum(0)
        rows, columns = (matrix.new_zeros(length) for length in self.matrix_shape)
        sums = matrix.sum(1)
        for band in self._bands():
            rows[band.start : band.start + band.rows] = sums[band.at : band.at + band.rows]
        columns[self._columns] = matrix.sum(0)
        return rows, columns

    def rows_of(self, vector: Tensor, matrix: Tensor) -> Tensor:
        """Take of a vector [R] what belongs to the rows of this rank's matrix: [r, 1]; 1 for a vocabulary's padding."""
        if self._undivided:
            return vector.unsqueeze(1)
        taken = vector.new_ones(matrix.shape[0])
        for band in self._bands():
            taken[band.at : band.at + band.rows] = vector[band.start : band.start + band.rows]
        return taken.unsqueeze(1)

    def columns_of(self, vector: Tensor) -> Tensor:
        """Take of a vector [C] what belongs to the columns of this rank's matrix: [c]."""
        return vector[self._columns]

    @property
    def _undivided(self) -> bool:
        """Whether this rank holds all of it, which many small kernels of a step then need not find out."""
        return not self.shard.partitioned and cut_of(self.shard.parameter) is None

    @property
    def _part(self) -> torch.Size:
        """The shape of what the ranks of one tensor-parallel place hold together."""
        parameter = self.shard.parameter
        return as_zero3(parameter).ds_shape if self.shard.partitioned else parameter.shape

    @property
    def _slice(self) -> tuple[int, int]:
        """Which elements [start, stop) of the flattened part a ZeRO-3 rank holds."""
        length, total = self.shard.data.numel(), self._part.numel()
        start = min(self.shard.topology.dp_rank * length, total)
        return start, min(start + length, total)

    @property
    def _columns(self) -> slice:
        cut = cut_of(self.shard.parameter)
        if cut is None or cut.dim == 0:
            return slice(None)
        [(start, stop)] = cut.held[self.shard.topology.tp_rank]
        inner = math.prod(self.shape[2:])
        return slice(start * inner, stop * inner)

    def _bands(self) -> Iterator[_Band]:
        first, last = 0, self._part[0]
        if self.shard.partitioned:
            width, (start, stop) = math.prod(self._part[1:]), self._slice
            first, last = start // width, -(-stop // width)
        cut = cut_of(self.shard.parameter)
        ranges = cut.held[self.shard.topology.tp_rank] if cut is not None and cut.dim == 0 else ((0, self._part[0]),)
        position = 0  # in the part, of the range's first row
        for start, stop in ranges:
            low, high = max(first, position), min(last, position + stop - start)
            if low < high:
                yield _Band(low - first, start + low - position, high - low)
            position += stop - start


def total_of_whole(shares: Sequence[tuple[Whole, Sequence[Tensor]]]) -> list[Tensor]:
    """Sum shares over all ranks that hold parts of a parameter, in one exchange a dimension of the mesh.

    A part that several ranks hold counts once. Collective over those ranks; where one holds all, its shares are sums.

    Args:
        shares: for each part that this rank holds (one, or those of a fused projection that is held in two) its
            tensors; of all parts in the same order and shapes.
    """
    first, tensors = shares[0]
    topology, cut = first.shard.topology, cut_of(first.shard.parameter)
    groups = [topology.dp_group if first.shard.partitioned else None, topology.tp_group if cut is not None else None]
    groups = [group for group in groups if group is not None]
    if not groups and len(shares) == 1:
        return list(tensors)
    packed = torch.zeros_like(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    for whole, parts in shares:
        cut = cut_of(whole.shard.parameter)
        if cut is None or cut.counts_on(topology.tp_rank):
            packed += torch.cat([part.reshape(-1) for part in parts])
    for group in groups:
        dist.all_reduce(packed, group=group)
    sums = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(sums, tensors, strict=True)]
