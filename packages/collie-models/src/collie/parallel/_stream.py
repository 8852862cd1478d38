"""The residual stream that tensor-parallel ranks share: whole on each of them, or split along the sequence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from collie.parallel._collectives import sum_backward, sum_forward
from collie.parallel._random import apart
from collie.parallel._sequence import gather_alike, gather_for_parts, own_part, sum_to_part
from collie.parallel._topology import Topology

# B batch, S sequence, P the positions of this rank (S where the stream is whole), E hidden


class Stream:
    """What lies between a model's blocks, and how a block takes its input from it and gives back its output.

    Whole, all ranks hold the same [B, S, E]. Split (sequence parallelism, Korthikanti et al. 2022), each holds
    ceil(S/ranks) positions, so that norms, dropout and what is kept for the backward pass cost a part as well.

    Args:
        topology: whose tp group shares the stream; None for a model that is not split.
        sequence: whether forwards may split it.
    """

    def __init__(self, topology: Topology | None = None, *, sequence: bool = False) -> None:
        self._topology = topology if topology is not None else Topology()
        self._group = self._topology.tp_group
        self.sequence = sequence and self._group is not None
        self._length: int | None = None  # S of a forward that has it split

    @contextmanager
    def flow(self, length: int, *, split: bool, dropout: float) -> Iterator[None]:
        """Run a forward from the embedding to the last norm.

        Args:
            length: S.
            split: False keeps the stream whole also under sequence parallelism: for the few tokens after a cache.
            dropout: of this forward; elements of a split stream are other ones on each rank, and so are its draws.

        Raises:
            ValueError: the stream is to be whole where its parameters' gradients are summed as for a split one.
        """
        split = split and self.sequence
        if self.sequence and not split and torch.is_grad_enabled():
            raise ValueError(
                "sequence_parallel=True sums gradients over parts of a sequence, and a forward with a cache has no "
                "parts. Call it under torch.no_grad(), or without use_cache and past_key_values."
            )
        with apart(self._topology) if split and dropout > 0 else nullcontext(), self._as(length if split else None):
            yield

    @contextmanager
    def _as(self, length: int | None) -> Iterator[None]:
        before, self._length = self._length, length
        try:
            yield
        finally:
            self._length = before

    def bound(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return `function` as it would run now: for a layer that the backward pass calls again."""
        length = self._length

        def run(*arguments: Any) -> Tensor:
            with self._as(length):
                return function(*arguments)

        return run

    def length(self, x_BPE: Tensor) -> int:
        """S, where `x_BPE` is the stream."""
        return x_BPE.shape[1] if self._length is None else self._length

    def positions(self, length: int, *, split: bool) -> int:
        """P of a forward over `length` positions; `split` as in `flow`."""
        return -(-length // self._topology.tp_size) if split and self.sequence else length

    def enter(self, x_BPE: Tensor) -> Tensor:
        """Return all positions, [B, S, E], for column-parallel products of them."""
        if self._length is None:
            return sum_backward(x_BPE, self._group)
        assert self._group is not None
        return gather_for_parts(x_BPE, self._length, self._group)

    def leave(self, x_BSE: Tensor) -> Tensor:
        """Return what the stream gets of row-parallel products: their sum, or this rank's positions of it."""
        if self._length is None:
            return sum_forward(x_BSE, self._group)
        assert self._group is not None
        return sum_to_part(x_BSE, self._group)

    def part(self, x_BSE: Tensor) -> Tensor:
        """Return what the stream gets of activations that all ranks hold."""
        return x_BSE if self._length is None or self._group is None else own_part(x_BSE, self._group)

    def whole(self, x_BPE: Tensor) -> Tensor:
        """Return all positions, [B, S, E], for what all ranks do alike."""
        if self._length is None or self._group is None:
            return x_BPE
        return gather_alike(x_BPE, self._length, self._group)
