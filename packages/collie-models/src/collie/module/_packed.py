"""Rows packed into one sequence: where each begins, and what follows from it.

A batch of packs [B, S] is described as flash-attention's kernels read it: `cu_seqlens`, the places in the flattened B·S
positions where rows begin, and B·S. Every position belongs to a row: the padding of a pack is a row of its own, which
no target is in and no other row sees.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from collie.module._loss import IGNORE_INDEX

# B packs, S positions of each, R rows of all packs together


@dataclass(frozen=True, eq=False)
class Packed:
    """The rows of a batch of packs.

    cu_seqlens: [R + 1] int32, rising from 0 to B·S; each pack begins with a row.
    packs, length: B and S.
    longest: how many positions the longest row has.
    """

    cu_seqlens: Tensor
    packs: int
    length: int
    longest: int

    @classmethod
    def build(cls, cu_seqlens: Tensor, packs: int, length: int) -> "Packed":
        """Check what a batch says of its rows. (The device is asked for them, once a forward.)

        Raises:
            ValueError: these are no rows of such a batch.
        """
        shape = f"[{packs}, {length}]"
        if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.is_floating_point():
            raise ValueError(
                f"cu_seqlens is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; it must be a flat list of "
                f"integers, the places in the flattened {shape} where rows begin, and their end."
            )
        starts, end = cu_seqlens.tolist(), packs * length
        lengths = [after - before for before, after in pairwise(starts)]
        within = set(starts).issuperset(range(0, end + 1, length))
        if not within or starts[0] or starts[-1] != end or min(lengths) < 1:
            raise ValueError(
                f"cu_seqlens goes from {starts[0]} to {starts[-1]} and does not fit input_ids of shape {shape}: it "
                f"must rise from 0 to {end}, and have every multiple of {length}, since no row lies in two packs. "
                f"(Padding is a row of its own. Prompts that are learnt lengthen packs: train these on rows apart.)"
            )
        return cls(cu_seqlens.int(), packs, length, max(lengths))

    @property
    def rows(self) -> int:
        """R, padding counted."""
        return len(self.cu_seqlens) - 1

    @cached_property
    def row_BS(self) -> Tensor:
        """The number of the row that each position belongs to."""
        places = torch.arange(self.packs * self.length, dtype=torch.int32, device=self.cu_seqlens.device)
        return torch.searchsorted(self.cu_seqlens, places, right=True).sub(1).view(self.packs, self.length)

    @property
    def positions_BS(self) -> Tensor:
        """Each position counted from its row's first."""
        places = torch.arange(self.packs * self.length, device=self.cu_seqlens.device).view(self.packs, self.length)
        return places - self.cu_seqlens[self.row_BS]

    def lengths(self, positions_BS: Tensor) -> Tensor:
        """Return how many positions each row takes, [R], where they are numbered so."""
        numbers, positions = self.row_BS.flatten(), positions_BS.expand_as(self.row_BS).flatten()
        return positions.new_zeros(self.rows).scatter_reduce(0, numbers, positions, "amax") + 1


def without_first_tokens(labels_BS: Tensor, cu_seqlens: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return labels in which no row's first token is a target: the last token of the row before must not predict it."""
    return labels_BS.flatten().index_fill(0, cu_seqlens[:-1].long(), ignore_index).view_as(labels_BS)


def widened(cu_seqlens: Tensor, shape: tuple[int, int], wider: tuple[int, int]) -> Tensor:
    """Return the rows' places once their batch is padded, behind its packs and below them; that is rows, too.

    Args:
        cu_seqlens: of packs of `shape`, [B, S].
        wider: the batch's shape then, no smaller.
    """
    (packs, length), (more_packs, longer) = shape, wider
    first = cu_seqlens[:-1]
    moved = first // length * longer + first % length
    pack = torch.arange(more_packs, dtype=cu_seqlens.dtype, device=cu_seqlens.device) * longer
    behind = pack[:packs] + length if longer > length else pack[:0]
    starts = torch.cat((moved, behind, pack[packs:])).sort().values
    return torch.cat((starts, starts.new_tensor([more_packs * longer])))
