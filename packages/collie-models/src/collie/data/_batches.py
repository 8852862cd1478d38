"""What loaders hand out, and the loading of evaluation rows over the ranks."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from collie.data._reads import Loaded, Read
from collie.data._sampler import CollieBatchSampler, SeededSampler, seed_sequence
from collie.interfaces import DataError

logger = logging.getLogger(__name__)

_REASONS = 10  # rows left out that are named; the others are counted


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass of one rank.

    Attributes:
        batch: what the collate function made: tensors [B, S] and lists, by field.
        rows: how many rows count. 0 marks a filler: one row again, with its labels, so that every rank makes the
            same calls; neither its loss nor its predictions may count.
    """

    batch: dict[str, Any]
    rows: int


class _PlacedReads:
    """A CollieBatchSampler's micro-batches, each with what follows from its place: its epoch, its step, its seed."""

    def __init__(self, sampler: CollieBatchSampler, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Read]:
        # the sampler's order is taken now and not at the first next(): a later epoch belongs to a later pass
        return self._placed(iter(self.sampler), self.epoch, self.sampler.start_step)

    def _placed(self, micro_batches: Iterator[list[int]], epoch: int, first_step: int) -> Iterator[Read]:
        sampler, number = self.sampler, first_step * self.sampler.accumulation_steps
        for step in range(first_step, sampler.steps):
            for rows, count in zip(
                islice(micro_batches, sampler.accumulation_steps), sampler.rows_of(step), strict=True
            ):
                read = Read(rows)
                read.counted, read.epoch, read.step_rows = count, epoch, sampler.places_of(step)
                read.seed = int(seed_sequence(self.seed, epoch, sampler.dp_rank, number).generate_state(1)[0])
                yield read
                number += 1


class RowReader:
    """Reads the rows of a micro-batch from a dataset that has them by number."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self, read: Read) -> Loaded:
        several = getattr(self._dataset, "__getitems__", None)
        rows = list(several(list(read))) if several is not None else [self._dataset[row] for row in read]
        return Loaded(rows, read.counted)


class _InWorkers:
    """What torch's loader calls a dataset, in data workers too: what is drawn follows from a micro-batch's place.

    So a training that resumes in the middle of an epoch, with new workers, reads what it would have read.
    """

    def __init__(self, reader: Callable[[Read], Loaded]) -> None:
        self._reader = reader

    def __getitems__(self, read: Read) -> Loaded:
        if get_worker_info() is not None:  # in the training's own process its generators go on, and are saved
            random.seed(read.seed)
            np.random.seed(read.seed)
            torch.manual_seed(read.seed)
        return self._reader(read)


class _Collate:
    """A collate function of rows alone, where the number of those that count travels with them."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._collate_fn = collate_fn

    def __call__(self, loaded: Loaded) -> Loaded:
        return loaded._replace(rows=self._collate_fn(loaded.rows))


class BatchReader:
    """A torch DataLoader over a CollieBatchSampler's micro-batches. It leaves torch's global random numbers alone."""

    def __init__(
        self,
        reader: Callable[[Read], Loaded],
        sampler: CollieBatchSampler,
        collate_fn: Callable[[list[Any]], Any],
        *,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.sampler = sampler
        self.refused = 0  # rows that were left out so far
        state = seed_sequence(seed, sampler.dp_rank).generate_state(1)
        self._reads = _PlacedReads(sampler, seed)
        self.loader: DataLoader[Any] = DataLoader(
            _InWorkers(reader),  # type: ignore[arg-type]  # torch reads whole micro-batches through __getitems__
            batch_sampler=self._reads,
            collate_fn=_Collate(collate_fn),  # type: ignore[arg-type]  # it is given what __getitems__ returned
            num_workers=num_workers,
            pin_memory=pin_memory and torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=torch.Generator().manual_seed(int(state[0])),
        )

    def micro_batches(self, epoch: int, start_step: int) -> Iterator[MicroBatch]:
        """The micro-batches of an epoch from a step on."""
        self.sampler.set_epoch(epoch, start_step)
        self._reads.epoch = epoch
        return map(self._noted, iter(self.loader))

    def _noted(self, loaded: Sequence[Any]) -> MicroBatch:
        """The micro-batch; rows that were left out of it are counted, and the first of them named."""
        batch, counted, refused = loaded
        for reason in refused[: max(0, _REASONS - self.refused)]:
            logger.warning("A row was left out: %s", reason)
        self.refused += len(refused)
        return MicroBatch(batch, counted)

    def steps(self, epoch: int, start_step: int = 0) -> Iterator[list[MicroBatch]]:
        """The same by optimizer step."""
        micro_batches = self.micro_batches(epoch, start_step)
        each = self.sampler.accumulation_steps
        return (list(islice(micro_batches, each)) for _ in range(start_step, self.sampler.steps))


def rows_in(dataset: Any) -> int:
    """The number of a dataset's rows. Raises DataError: no length or no access by index, or no rows."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"the dataset is a {type(dataset).__name__}, which has no length or no access by index: "
            "give a list of rows, or a dataset that has both."
        )
    if len(dataset) == 0:
        raise DataError("the dataset has no rows: nothing can be trained or evaluated on it.")
    return len(dataset)


def evaluation_batches(
    dataset: Any,
    batch_size: int,
    dp_rank: int,
    dp_size: int,
    collate_fn: Callable[[list[Any]], Any],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[MicroBatch]:
    """This rank's batches of the dataset in its own order: on every rank ceil(rows / (batch_size × dp_size)).

    Of each global batch of batch_size × dp_size rows, rank r takes the r-th contiguous block: results gathered in
    rank order, without those of fillers, are in the dataset's order, and no row counts twice. A rank without a row
    in the last, smaller global batch gets a filler (rows 0).

    batch_size: rows of one rank's batch. Raises DataError (no rows) and ConfigError (sizes), before the first batch.
    """
    order = SeededSampler(rows_in(dataset), shuffle=False, seed=0)
    sampler = CollieBatchSampler(order, batch_size, dp_rank=dp_rank, dp_size=dp_size)
    reader = BatchReader(RowReader(dataset), sampler, collate_fn, num_workers=num_workers, pin_memory=pin_memory)
    return (batch for step in reader.steps(0) for batch in step)
