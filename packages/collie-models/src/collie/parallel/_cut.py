"""Which part of a parameter a tensor-parallel rank holds: ranges of rows or one of columns, known on every rank."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

Ranges = tuple[tuple[int, int], ...]  # [start, stop), in the order in which a rank holds them


class Piece(NamedTuple):
    """Consecutive elements of a rank's part, and where they come from."""

    at: int  # in the flattened part
    start: int  # elements [start, stop) of the flattened whole, or of its `columns` alone
    stop: int
    columns: tuple[int, int] | None


@dataclass(frozen=True)
class Cut:
    """How one parameter of the whole model is divided among tensor-parallel ranks along one dimension.

    name: of the whole parameter, in the model before it was split.
    whole: its shape.
    dim: 0 for rows, 1 for columns.
    held: for each rank the ranges along `dim` that it holds; for columns exactly one.
    length: of every rank's part along `dim`; what lies behind its ranges is padding, and zero.
    copies: how many neighbouring ranks hold the same part.
    """

    name: str
    whole: torch.Size
    dim: int
    held: tuple[Ranges, ...]
    length: int
    copies: int = 1

    @property
    def shape(self) -> torch.Size:
        """The shape of a rank's part."""
        return torch.Size((*self.whole[: self.dim], self.length, *self.whole[self.dim + 1 :]))

    def pieces(self, tp_rank: int, start: int, stop: int) -> Iterator[Piece]:
        """Yield where elements [start, stop) of a rank's flattened part come from; padding is left out."""
        ranges = self.held[tp_rank]
        if self.dim == 1:
            yield Piece(start, start, stop, ranges[0])
            return
        width = math.prod(self.whole[1:])
        position = 0  # in the part, of the range's first element
        for first, last in ranges:
            low, high = max(start, position), min(stop, position + (last - first) * width)
            if low < high:
                offset = first * width - position
                yield Piece(low, low + offset, high + offset, None)
            position += (last - first) * width

    def put(self, part: Tensor, tp_rank: int, whole: Tensor) -> None:
        """Write a rank's part to its place in the whole, without the padding."""
        position = 0
        for first, last in self.held[tp_rank]:
            whole.narrow(self.dim, first, last - first).copy_(part.narrow(self.dim, position, last - first))
            position += last - first

    def counts_on(self, tp_rank: int) -> bool:
        """Whether a rank is the one of those with the same part that counts it in sums over all parameters."""
        return tp_rank % self.copies == 0


def even(total: int, ranks: int) -> tuple[Ranges, ...]:
    """Divide [0, total) into as many equal ranges as there are ranks; the last may be shorter or missing."""
    length = -(-total // ranks)
    starts = (min(rank * length, total) for rank in range(ranks))
    return tuple(((start, min(start + length, total)),) if start < total else () for start in starts)


def joined(parts: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges with those that touch made one."""
    result: list[tuple[int, int]] = []
    for start, stop in parts:
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], stop)
        else:
            result.append((start, stop))
    return tuple(result)


class _CutParameter(Protocol):
    tp_cut: Cut


def mark(parameter: nn.Parameter, cut: Cut) -> nn.Parameter:
    """Let a parameter say what it is a part of; return it."""
    cast(_CutParameter, parameter).tp_cut = cut
    return parameter


def cut_of(parameter: nn.Parameter) -> Cut | None:
    """Return what `mark` said, or None where every tensor-parallel rank holds the whole parameter."""
    return getattr(parameter, "tp_cut", None)
