"""Which rows a rank reads in which optimizer step.

One step takes dp_size × batch_size × accumulation_steps rows of the epoch's order, in any layout; so the same
product sees the same rows in step k. Rank d's are the d-th contiguous block of them, and its micro-batches
contiguous blocks of that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

import numpy as np
from torch.utils.data import DistributedSampler

from collie.interfaces import ConfigError, DataError


class IndexOrder(Protocol):
    """An order of row numbers, such as a torch Sampler; with `set_epoch` where it changes from epoch to epoch."""

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int: ...


class EpochSampler(ABC):
    """An order of row numbers that follows from the epoch alone; subclasses draw it.

    That of the last epoch asked for is kept as an array: a million rows are 8 MB and no Python objects, and a place in
    it is found without passing through what comes before.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0
        self._drawn: tuple[int, np.ndarray | range] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Order the next passes as those of `epoch`."""
        self.epoch = epoch

    def order(self) -> np.ndarray | range:
        """The row numbers [length] in this epoch's order."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            self._drawn = self.epoch, self._draw(self.epoch)
        return self._drawn[1]

    @abstractmethod
    def _draw(self, epoch: int) -> np.ndarray | range:
        """The row numbers [length] in the order of `epoch`, the same on every rank."""

    def __iter__(self) -> Iterator[int]:
        return map(int, self.order())

    def __len__(self) -> int:
        return self.length


class SeededSampler(EpochSampler):
    """An epoch's order: a permutation drawn from (seed, epoch), equal on every rank, or the dataset's own."""

    def __init__(self, length: int, shuffle: bool, seed: int) -> None:
        super().__init__(length)
        self.shuffle = shuffle
        self.seed = seed

    def _draw(self, epoch: int) -> np.ndarray | range:
        if not self.shuffle:
            return range(self.length)
        return np.random.default_rng(seed_sequence(self.seed, epoch)).permutation(self.length)


class CollieBatchSampler:
    """The micro-batches of one rank as lists of row numbers, `accumulation_steps` of them a step, on every rank alike.

    A last step with fewer rows (last_batch "normal") spreads them: each rank gets the same number or one more, and
    fills its micro-batches one after another. A micro-batch for which none is left holds one row again, so that
    every rank makes the same calls; `rows_of` is 0 for it, and it must not count. "drop" leaves that step out.

    Usable as the batch_sampler of a torch DataLoader.

    Args:
        sampler: the order of rows, equal on every rank.
        batch_size: rows of a micro-batch.
        last_batch: "normal" or "drop".
        accumulation_steps: micro-batches of a step.
        dp_rank, dp_size: which of how many data-parallel replicas this is; tp and pp ranks of one replica share
            its dp_rank.

    Raises ConfigError: a size below 1, a rank outside of its size, another last_batch, no step at all.
    """

    def __init__(
        self,
        sampler: IndexOrder,
        batch_size: int,
        last_batch: str = "normal",
        *,
        accumulation_steps: int = 1,
        dp_rank: int = 0,
        dp_size: int = 1,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("accumulation_steps", accumulation_steps),
            ("dp_size", dp_size),
        ):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r}: give a whole number of at least 1.")
        if not 0 <= dp_rank < dp_size:
            raise ConfigError(f"dp_rank={dp_rank} is not one of dp_size={dp_size} ranks: give 0 … {dp_size - 1}.")
        if last_batch not in ("normal", "drop"):
            raise ConfigError(f"last_batch={last_batch!r}: give 'normal' (a last, smaller step) or 'drop' (none).")
        if isinstance(sampler, DistributedSampler):
            raise ConfigError(
                "sampler is a DistributedSampler, which splits the rows over ranks, as the loader does itself: "
                "give a sampler of all rows, such as SequentialSampler, or use shuffle=True."
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.last_batch = last_batch
        self.accumulation_steps = accumulation_steps
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        self.start_step = 0
        self.rows_per_step = dp_size * batch_size * accumulation_steps
        if self.steps == 0:
            raise ConfigError(
                f"{len(sampler)} rows make no step of dp_size={dp_size} × batch_size={batch_size} × "
                f"accumulation_steps={accumulation_steps} = {self.rows_per_step} rows with last_batch={last_batch!r}: "
                "use smaller sizes or more rows"
                + (", or last_batch='normal' (drop_last=False)." if len(sampler) else ".")
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        if self.last_batch == "drop":
            return len(self.sampler) // self.rows_per_step
        return math.ceil(len(self.sampler) / self.rows_per_step)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Make the next pass that of `epoch`, from its step `start_step` on."""
        if not 0 <= start_step <= self.steps:
            raise ConfigError(f"start_step={start_step} is not in an epoch of {self.steps} steps.")
        self.start_step = start_step
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)

    def rows_of(self, step: int) -> list[int]:
        """For each micro-batch of `step` on this rank the number of its rows that count."""
        start, end = self._block(self._step_size(step))
        return [max(0, min(self.batch_size, end - start - m * self.batch_size)) for m in range(self.accumulation_steps)]

    def rows_at(self, epoch: int, step: int) -> list[list[int]]:
        """For each micro-batch of a step on this rank the row numbers that count; passes under way are left alone."""
        before = self.start_step, getattr(self.sampler, "epoch", 0)
        self.set_epoch(epoch, step)
        chosen = list(islice(iter(self), self.accumulation_steps))
        self.set_epoch(before[1], before[0])
        return [rows[:count] for rows, count in zip(chosen, self.rows_of(step), strict=True)]

    def __len__(self) -> int:
        """Micro-batches of a pass on this rank."""
        return (self.steps - self.start_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[int]]:
        # the order is taken now and not at the first next(): a later set_epoch belongs to a later pass
        return self._micro_batches(_taking(self.sampler, self.start_step * self.rows_per_step), self.start_step)

    def _micro_batches(self, take: Callable[[int], list[int]], first_step: int) -> Iterator[list[int]]:
        for step in range(first_step, self.steps):
            rows = take(self._step_size(step))
            if len(rows) < self._step_size(step):
                raise DataError(f"the sampler ended in step {step}, before the {len(self.sampler)} rows of its length.")
            start, _ = self._block(len(rows))
            for count in self.rows_of(step):
                yield rows[start : start + count] or rows[:1]
                start += count

    def places_of(self, step: int) -> range:
        """The places in the epoch's order that `step` takes, on all ranks together."""
        return range(step * self.rows_per_step, step * self.rows_per_step + self._step_size(step))

    def _step_size(self, step: int) -> int:
        return min(self.rows_per_step, len(self.sampler) - step * self.rows_per_step)

    def _block(self, size: int) -> tuple[int, int]:
        """This rank's part of a step of `size` rows: the first size % dp_size ranks have one row more."""
        each, more = divmod(size, self.dp_size)
        start = self.dp_rank * each + min(self.dp_rank, more)
        return start, start + each + (self.dp_rank < more)


def _taking(sampler: IndexOrder, start: int) -> Callable[[int], list[int]]:
    """A function that takes the next so many row numbers of this epoch's order, from the place `start` on."""
    if not isinstance(sampler, EpochSampler):
        rest = islice(iter(sampler), start, None)
        return lambda count: list(islice(rest, count))
    order, place = sampler.order(), start

    def take(count: int) -> list[int]:
        nonlocal place
        place += count
        return list(map(int, order[place - count : place]))

    return take


def seed_sequence(seed: int, *path: int) -> np.random.SeedSequence:
    """Independent random numbers for each path (an epoch, a rank) below one seed."""
    return np.random.SeedSequence([seed % 2**63, *path])
