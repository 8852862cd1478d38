"""What is asked of whoever reads rows, in the training's own process or in a data worker, and what comes back."""

from __future__ import annotations

from typing import Any, NamedTuple


class Read(list[int]):
    """The row numbers of one micro-batch on this rank, the filler's where it has none of its own.

    counted: how many of them count: all, or 0 of a filler. epoch: that they belong to. step_rows: the places in the
    epoch's order that the whole step takes, on all ranks. seed: of the random numbers that reading may draw.
    """

    counted: int
    epoch: int
    step_rows: range
    seed: int


class Loaded(NamedTuple):
    """Rows as they were read, or the batch made of them.

    counted: how many of them count, 0 of a filler. refused: of rows that were left out, why.
    """

    rows: Any
    counted: int
    refused: tuple[str, ...] = ()
