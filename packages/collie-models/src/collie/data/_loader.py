"""The loader of training rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from collie.data._batches import BatchReader, MicroBatch, rows_in
from collie.data._padder import ColliePadder
from collie.data._sampler import CollieBatchSampler, IndexOrder, SeededSampler
from collie.interfaces import ConfigError


class CollieDataLoader:
    """Batches of rows for one data-parallel rank, counted in optimizer steps.

    A step takes dp_size × batch_size × accumulation_steps rows of the epoch's order; `len(loader)` is the steps of
    an epoch. Two ways to read it:
        `for step in loader.iterate(epoch, start_step)`: what a training loop needs: for each step the list of its
            `accumulation_steps` micro-batches on this rank, each with the number of rows that count (see
            CollieBatchSampler). It depends on nothing but its arguments: a position is (epoch, step).
        `for batch in loader`: the plain one: one batch a step, this rank's rows of it together. Each pass is the
            next epoch, from the one that `set_epoch` named on. With fewer rows than ranks left, a rank repeats one.

    Args:
        dataset: a sequence of rows.
        batch_size: rows of a micro-batch.
        accumulation_steps: micro-batches of a step on each rank.
        shuffle: a new order every epoch, drawn from (seed, epoch), equal on every rank; else the dataset's own.
        pin_memory: page-locked memory for faster copies to a GPU; without CUDA it does nothing.
        collate_fn: makes a batch of a list of rows; ColliePadder() unless given.
        num_workers: data worker processes, kept from epoch to epoch; None and 0: none.
        sampler: an order of your own, equal on every rank, in place of shuffle.
        drop_last: leave out a last step that is not full.
        seed: of the order, and with dp_rank of the random numbers that data workers start with.
        dp_rank, dp_size: which of how many data-parallel replicas reads here.

    Raises:
        DataError: no rows, or a dataset without length.
        ConfigError: sizes that cannot be, no step, or both sampler and shuffle.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        accumulation_steps: int = 1,
        shuffle: bool = False,
        pin_memory: bool = True,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int | None = None,
        sampler: IndexOrder | None = None,
        drop_last: bool = False,
        *,
        seed: int = 42,
        dp_rank: int = 0,
        dp_size: int = 1,
    ) -> None:
        rows = rows_in(dataset)
        if sampler is not None and shuffle:
            raise ConfigError("sampler and shuffle=True each give an order: give one of them.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.accumulation_steps = accumulation_steps
        self.drop_last = drop_last
        self.seed = seed
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        self.epoch = 0
        self._order = SeededSampler(rows, shuffle, seed) if sampler is None else sampler
        self._collate = ColliePadder() if collate_fn is None else collate_fn
        self._workers = num_workers or 0
        self._pin_memory = pin_memory
        self._micro = self._reader(batch_size, accumulation_steps)

    def __len__(self) -> int:
        """Optimizer steps of an epoch, equal on every rank."""
        return self._micro.sampler.steps

    def set_epoch(self, epoch: int) -> None:
        """Make the next `for batch in loader` that of `epoch`."""
        self.epoch = epoch

    def iterate(self, epoch: int, start_step: int = 0) -> Iterator[list[MicroBatch]]:
        """The steps of `epoch` from `start_step` (0 … len) on. Raises ConfigError: a start_step beyond the epoch."""
        return self._micro.steps(epoch, start_step)

    def rows_at(self, epoch: int, step: int) -> list[list[int]]:
        """The dataset's row numbers in each micro-batch of a step on this rank, without fillers."""
        return self._micro.sampler.rows_at(epoch, step)

    def __iter__(self) -> Iterator[Any]:
        batches = self._whole.batches(self.epoch, 0)
        self.epoch += 1
        return batches

    @cached_property
    def _whole(self) -> BatchReader:
        """Reads a step's rows of this rank as one batch."""
        return (
            self._micro if self.accumulation_steps == 1 else self._reader(self.batch_size * self.accumulation_steps, 1)
        )

    def _reader(self, batch_size: int, accumulation_steps: int) -> BatchReader:
        sampler = CollieBatchSampler(
            self._order,
            batch_size,
            "drop" if self.drop_last else "normal",
            accumulation_steps=accumulation_steps,
            dp_rank=self.dp_rank,
            dp_size=self.dp_size,
        )
        return BatchReader(
            self.dataset,
            sampler,
            self._collate,
            seed=self.seed,
            num_workers=self._workers,
            pin_memory=self._pin_memory,
        )
