"""The loader of training rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from collie.data._batches import BatchReader, MicroBatch, RowReader, rows_in
from collie.data._length_groups import LengthGroupedSampler, lengths_of
from collie.data._padder import ColliePadder
from collie.data._reads import Loaded, Read
from collie.data._sampler import CollieBatchSampler, IndexOrder, SeededSampler
from collie.data._stream import CollieStream, StreamReader
from collie.data._stream_order import BlockOrder
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
        dataset: a sequence of rows, or a CollieStream.
        batch_size: rows of a micro-batch.
        accumulation_steps: micro-batches of a step on each rank.
        shuffle: a new order every epoch, drawn from (seed, epoch), equal on every rank; else the dataset's own. Of a
            stream, within blocks of its shuffle_buffer.
        pin_memory: page-locked memory for faster copies to a GPU; without CUDA it does nothing.
        collate_fn: makes a batch of a list of rows; ColliePadder() unless given.
        num_workers: data worker processes, kept from epoch to epoch; None and 0: none.
        sampler: an order of your own, equal on every rank, in place of shuffle.
        drop_last: leave out a last step that is not full.
        data_efficiency_config: must be empty: what of DeepSpeed's data efficiency chooses rows is not done here.
        group_by_length: rows of like length in one step, against padding: see LengthGroupedSampler. It is an order of
            its own, another every epoch. Lengths are the dataset's `lengths`, else found by reading every row once.
        seed: of the order, and with dp_rank of the random numbers that data workers start with.
        dp_rank, dp_size: which of how many data-parallel replicas reads here.

    Attributes:
        order: what the order of rows follows from besides their number, the seed and the epoch, in words: a checkpoint
            has it, to be compared.

    Raises:
        DataError: no rows, or a dataset without length that is no CollieStream.
        ConfigError: sizes that cannot be, no step, both a sampler and shuffle, a stream in an order of row numbers, a
            data_efficiency_config.
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
        data_efficiency_config: Mapping[str, Any] | None = None,
        *,
        group_by_length: bool = False,
        seed: int = 42,
        dp_rank: int = 0,
        dp_size: int = 1,
    ) -> None:
        if data_efficiency_config:
            raise ConfigError(
                f"data_efficiency_config={dict(data_efficiency_config)!r}: DeepSpeed's curricula choose rows by "
                "numbers of their own, and leave no order that a checkpoint could resume. Leave it out: "
                "group_by_length=True saves padding, and sampler=… takes an order of yours."
            )
        if sampler is not None and (shuffle or group_by_length):
            given = "group_by_length=True" if group_by_length else "shuffle=True"
            raise ConfigError(f"sampler and {given} each give an order: give one of them.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.accumulation_steps = accumulation_steps
        self.drop_last = drop_last
        self.seed = seed
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        self.epoch = 0
        self._collate = ColliePadder() if collate_fn is None else collate_fn
        self._workers = num_workers or 0
        self._pin_memory = pin_memory
        per_step = dp_size * batch_size * accumulation_steps
        self._read: Callable[[Read], Loaded]
        self._order: IndexOrder
        self._blocks: BlockOrder | None = None  # where rows have no numbers but places in a stream
        if isinstance(dataset, CollieStream):
            if sampler is not None or group_by_length:
                given = "a sampler" if sampler is not None else "group_by_length=True"
                raise ConfigError(f"{given} orders rows by number, and a stream is read as it comes: leave it out.")
            self._blocks = BlockOrder(dataset.rows_per_epoch(per_step), dataset.shuffle_buffer if shuffle else 0, seed)
            self._order = SeededSampler(self._blocks.rows, shuffle=False, seed=seed)
            self._read = StreamReader(dataset, self._blocks)
            self.order = f"{dataset.described}, shuffled within {self._blocks.buffer} rows"
        else:
            self._order, self.order = _order_of(dataset, sampler, shuffle, group_by_length, per_step, seed)
            self._read = RowReader(dataset)
        self._micro = self._reader(batch_size, accumulation_steps)

    @property
    def rows(self) -> int:
        """Rows of an epoch's order, on all ranks together."""
        return len(self._order)

    @property
    def refused(self) -> int:
        """How many rows of a stream this rank has left out so far, because they could not be used."""
        return self._micro.refused

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
        """The dataset's or stream's row numbers in each micro-batch of a step on this rank, without fillers."""
        rows = self._micro.sampler.rows_at(epoch, step)
        if self._blocks is None:
            return rows
        return [[self._blocks.row_at(epoch, place) for place in micro_batch] for micro_batch in rows]

    def __iter__(self) -> Iterator[Any]:
        micro_batches = self._whole.micro_batches(self.epoch, 0)
        self.epoch += 1
        return (micro_batch.batch for micro_batch in micro_batches)

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
            self._read,
            sampler,
            self._collate,
            seed=self.seed,
            num_workers=self._workers,
            pin_memory=self._pin_memory,
        )


def _order_of(
    dataset: Any, sampler: IndexOrder | None, shuffle: bool, group_by_length: bool, rows_per_step: int, seed: int
) -> tuple[IndexOrder, str]:
    """The order of a dataset that has row numbers, and what it is called where a checkpoint is compared with it."""
    rows = rows_in(dataset)
    if sampler is not None:
        return sampler, "by a sampler"
    if group_by_length:
        return LengthGroupedSampler(lengths_of(dataset), rows_per_step, seed), f"by length, {rows_per_step} rows a step"
    return SeededSampler(rows, shuffle, seed), "shuffled" if shuffle else "in order"
