"""Token tables of several sources read as one, and which of their rows an epoch reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collie.data._rows import Refused
from collie.data._sources import Source
from collie.data._table import TokenTable
from collie.module import IGNORE_INDEX


@dataclass(frozen=True, eq=False)
class Part:
    """A source with its tokens.

    format: its formats by name. skipped: its rows that cannot be used, of those within max_rows.
    """

    source: Source
    title: str
    format: str
    table: TokenTable
    skipped: Sequence[Refused] = ()

    @property
    def rows(self) -> int:
        """How many of the table's rows are used: those of the source's first max_rows."""
        limit = self.source.max_rows
        return len(self.table) if limit is None else min(len(self.table), limit - len(self.skipped))

    def order(self, seed: int, number: int) -> np.ndarray:
        """The table's rows that an epoch reads, ascending: whole passes, then the rest of the weight, drawn by seed.

        number: the source's place, so that two sources of one length do not draw the same rows.
        """
        passes, rest = divmod(self.source.weight, 1.0)
        drawn = round(rest * self.rows)
        if not passes:
            drawn = max(drawn, min(1, self.rows))  # a source that is asked for is there
        # the beginning of one permutation: a larger weight draws the rows of a smaller one, and others
        rest_rows = np.sort(np.random.default_rng((seed, number)).permutation(self.rows)[:drawn])
        return np.concatenate([np.tile(np.arange(self.rows), int(passes)), rest_rows])


class Mixture:
    """The rows of several tables under one numbering: those of the first, then those of the second, and so on."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.starts = np.concatenate([[0], np.cumsum([len(part.table) for part in parts])]).astype(np.int64)

    def order(self, shuffle: bool, seed: int) -> np.ndarray:
        """The rows of an epoch, int64: a source after the other, or mixed by seed."""
        order = np.concatenate(
            [
                start + part.order(seed, number)
                for number, (start, part) in enumerate(zip(self.starts, self.parts, strict=False))
            ]
        )
        return np.random.default_rng(seed).permutation(order) if shuffle else order

    def row(self, number: int) -> dict[str, Any]:
        """Row `number` as a dict: the token fields as lists of int, then the others."""
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.parts[part].table.row(number - int(self.starts[part]))

    def lengths(self, order: np.ndarray) -> np.ndarray:
        """Tokens of each row of `order`, int64."""
        return np.concatenate([np.diff(part.table.offsets) for part in self.parts])[order]

    def rows_of(self, number: int, order: np.ndarray) -> np.ndarray:
        """Of `order` the rows of part `number`, as its table numbers them."""
        start, end = self.starts[number : number + 2]
        return order[(order >= start) & (order < end)] - start

    def table(self) -> TokenTable:
        """One table of all rows; the only one as it is."""
        tables = [part.table for part in self.parts]
        return tables[0] if len(tables) == 1 else concatenated(tables)


def concatenated(tables: Sequence[TokenTable]) -> TokenTable:
    """The rows of several tables in one, in memory. What each says of rows that it left out is not in it."""
    columns: dict[str, Any] = {"input_ids": np.concatenate([table.columns["input_ids"] for table in tables])}
    if any("labels" in table.columns for table in tables):
        columns["labels"] = np.concatenate([_labels(table) for table in tables])
    else:
        columns["targets"] = np.concatenate([table.columns["targets"] for table in tables])
    if any("attention_mask" in table.columns for table in tables):
        columns["attention_mask"] = np.concatenate([_mask(table) for table in tables])
    lengths = np.concatenate([np.diff(table.offsets) for table in tables])
    return TokenTable(
        columns,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        [extra for table in tables for extra in (table.extras or [{}] * len(table))]
        if any(len(table.extras) for table in tables)
        else (),
        uncut=np.concatenate([table.uncut for table in tables]),
        inside_turn=np.concatenate([table.inside_turn for table in tables]),
    )


def _labels(table: TokenTable) -> np.ndarray:
    if "labels" in table.columns:
        return table.columns["labels"]
    return np.where(table.columns["targets"], table.columns["input_ids"], np.int32(IGNORE_INDEX))


def _mask(table: TokenTable) -> np.ndarray:
    ones = np.ones(len(table.columns["input_ids"]), dtype=np.int32)
    return table.columns.get("attention_mask", ones)
