"""The order in which a stream is read: its blocks are shuffled in memory, so that a place is found by counting."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from collie.data._sampler import seed_sequence
from collie.interfaces import DataError

if TYPE_CHECKING:
    from collie.data._stream_sources import Item, RowSource


@dataclass(frozen=True)
class BlockOrder:
    """Shuffles a stream of `rows` rows block by block, with no more than `buffer` rows in memory.

    A reservoir of rows, of which one is drawn as one is read, mixes a little further; but what it holds at a place of
    the epoch can be anything read before, so that a training that resumes there has to read all of that. A block
    holds neighbours: to stand anywhere means to skip to its block and to read at most `buffer` rows. Where blocks begin
    is drawn for each epoch (the first one is cut short), so that rows apart in one epoch meet in another.

    rows: of an epoch. buffer: rows of a block; 1 or less reads in the stream's own order. seed: with the epoch and the
    block's number it decides everything, whatever the rows are.
    """

    rows: int
    buffer: int
    seed: int

    @property
    def shuffles(self) -> bool:
        """Whether the order is another than the stream's own."""
        return self.buffer > 1

    def blocks(self, epoch: int, position: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """From the block that holds `position` on: each one's first row, and the order [rows of the block] in it."""
        short = int(self._random(epoch).integers(1, self.buffer + 1))  # rows of the first block
        number = 0 if position < short else 1 + (position - short) // self.buffer
        start = 0 if number == 0 else short + (number - 1) * self.buffer
        while start < self.rows:
            length = min(self.buffer if number else short, self.rows - start)
            yield start, self._random(epoch, number + 1).permutation(length)
            start, number = start + length, number + 1

    def row_at(self, epoch: int, position: int) -> int:
        """Which row of the stream is read at `position` of an epoch."""
        if not self.shuffles:
            return position
        start, order = next(self.blocks(epoch, position))
        return start + int(order[position - start])

    def items(self, source: RowSource, epoch: int, position: int = 0) -> Iterator[Item]:
        """The stream's items in this order from `position` on. Raises DataError: the stream ends before `rows` rows."""
        if not self.shuffles:
            yield from self._plain(source, epoch, position)
            return
        unread: Iterator[Item] | None = None
        for start, order in self.blocks(epoch, position):
            if unread is None:
                unread = source.items(self.seed, epoch, start)
            block = list(islice(unread, len(order)))
            if len(block) < len(order):
                raise self._ended(epoch, start + len(block))
            for index in order[max(0, position - start) :].tolist():
                yield block[index]

    def _plain(self, source: RowSource, epoch: int, position: int) -> Iterator[Item]:
        read = position
        for item in islice(source.items(self.seed, epoch, position), self.rows - position):
            yield item
            read += 1
        if read < self.rows:
            raise self._ended(epoch, read)

    def _ended(self, epoch: int, rows: int) -> DataError:
        return DataError(
            f"the stream ended after {rows} rows of epoch {epoch}, and an epoch has {self.rows} rows here: "
            f"give rows={rows} or fewer (or fewer steps_per_epoch), or a stream that is as long every time."
        )

    def _random(self, *path: int) -> np.random.Generator:
        return np.random.default_rng(seed_sequence(self.seed, *path))


class Cursor:
    """Items of one epoch by their position, read forward: what lies before the step that is read is forgotten.

    Going back further begins the epoch anew and skips, which is right, and slow; so does going on after an error.
    """

    def __init__(self, order: BlockOrder, source: RowSource, epoch: int) -> None:
        self.epoch = epoch
        self._order, self._source = order, source
        self._first = 0
        self._kept: deque[Item] = deque()
        self._unread: Iterator[Item] | None = None  # begun when an item is asked for: until then, the source may skip

    def step_at(self, first: int) -> None:
        """Keep items from position `first` on."""
        if first < self._first:
            self._forget()
        if self._unread is None:
            self._first = first
        while self._first < first:
            if not self._kept:
                self._read()
            self._kept.popleft()
            self._first += 1

    def __getitem__(self, position: int) -> Item:
        while len(self._kept) <= position - self._first:
            self._read()
        return self._kept[position - self._first]

    def _read(self) -> None:
        if self._unread is None:
            self._unread = self._order.items(self._source, self.epoch, self._first)
        try:
            self._kept.append(next(self._unread))
        except BaseException:  # an iterator that has raised is at its end, and would end the epoch without a word
            self._forget()
            raise

    def _forget(self) -> None:
        self._unread = None
        self._kept.clear()
