"""What the rows of a linear map's weight are, where that decides how ranks divide them."""

from dataclasses import dataclass
from typing import Protocol

from collie.parallel._cut import Ranges, joined

_QUERIES, _KEYS_VALUES = ("q",), ("k", "v")


class Heads(Protocol):
    """An attention block, as far as dividing its heads goes: what `collie.module.Attention` is."""

    heads: int
    kv_heads: int


class Indivisible(Exception):
    """Rows that some number of ranks cannot divide; the message is the beginning of a sentence that says so."""


@dataclass(frozen=True)
class Layout:
    """Blocks that lie behind one another in a fused weight; each rank gets its part of every one of them.

    Blocks "q", "k" and "v" are divided by whole heads, all others (of equal size) by rows. Keys and values of fewer
    heads than there are ranks are held by several: those whose queries attend to them.
    """

    blocks: tuple[str, ...]

    @property
    def by_heads(self) -> bool:
        return any(block in _QUERIES + _KEYS_VALUES for block in self.blocks)

    def held(self, name: str, rows: int, heads: Heads | None, ranks: int) -> "Held":
        """Return for each rank the row ranges that it holds alone, and those that it holds with its neighbours.

        Raises:
            Indivisible: the blocks' rows or heads do not divide.
        """
        own: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
        shared: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
        counts = [self._units(block, heads) for block in self.blocks]
        unit = rows // sum(counts) if heads is not None else 1  # rows of a head
        most, start = 1, 0
        for block, count in zip(self.blocks, counts, strict=True):
            units = count if heads is not None else rows // len(self.blocks)
            copies = 1
            if units % ranks:
                copies = self._copies(name, block, units, ranks)
            most = max(most, copies)
            part = units * copies // ranks
            for rank in range(ranks):
                first = start + rank // copies * part * unit
                (own if copies == 1 else shared)[rank].append((first, first + part * unit))
            start += units * unit
        return Held(tuple(map(joined, own)), tuple(map(joined, shared)), most)

    def _units(self, block: str, heads: Heads | None) -> int:
        if heads is None:
            return 1
        return heads.heads if block in _QUERIES else heads.kv_heads

    def _copies(self, name: str, block: str, units: int, ranks: int) -> int:
        if block in _KEYS_VALUES:
            if ranks % units:
                raise Indivisible(f"neither divides num_key_value_heads={units} nor is a multiple of it")
            return ranks // units
        if block in _QUERIES:
            raise Indivisible(f"does not divide num_attention_heads={units}")
        raise Indivisible(f"does not divide the {units} rows of {name}")


@dataclass(frozen=True)
class Held:
    """For each rank the ranges that it holds alone, and those that `copies` neighbours hold, itself among them."""

    own: tuple[Ranges, ...]
    shared: tuple[Ranges, ...]
    copies: int


def fused(*blocks: str) -> Layout:
    """Return the layout of a weight that holds these blocks, in this order: fused("q", "k", "v"), fused("gate", "up").

    A projection of one block is fused("k"). Keys and values stand behind queries.
    """
    return Layout(blocks)


ROWS = fused("rows")  # one block, and nothing known about it
