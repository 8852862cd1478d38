"""Batches for every rank, in step: as many on each, fillers where a rank has run out."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from collie.data import CollieDataLoader, MicroBatch
from collie.interfaces import DataError
from collie.parallel import Topology

_NONE, _HAD, _HAS, _FAILED = range(4)  # a rank's loader: never had a batch, has run out, has one now, raised


def in_step(loader: Iterable[Any], topology: Topology) -> Iterator[MicroBatch]:
    """The batches of a loader; each data-parallel rank brings its own rows.

    Ranks agree before each batch whether any of them has one. A rank that has none left repeats its last batch with
    rows=0: the forward runs, which keeps sharded models in step, and nothing of it counts.

    Raises:
        DataError: on every rank: one rank has no batch at all while another has, or cannot read its batch (there it
            is the loader's own error), or its batch is no dict.
    """
    last: MicroBatch | None = None
    iterator = iter(_items(loader))
    while True:
        failure: Exception | None = None
        current: MicroBatch | None = None
        try:
            item = next(iterator, None)
            current = None if item is None else as_micro_batch(item)
        except Exception as error:  # whatever it is, the other ranks must hear of it
            failure = error
        last = current or last
        states = _everyones(_FAILED if failure else _HAS if current else _HAD if last else _NONE, topology)
        if failure is not None:
            raise failure
        if _FAILED in states:
            failed = ", ".join(str(rank) for rank, state in enumerate(states) if state == _FAILED)
            raise DataError(
                f"data-parallel rank {failed} could not read its rows: its own error says why, and no rank goes on "
                f"without it."
            )
        if _HAS not in states:
            return
        if last is None or _NONE in states:  # the first says what the second means for this rank
            empty = ", ".join(str(rank) for rank, state in enumerate(states) if state == _NONE)
            raise DataError(
                f"The dataloader of data-parallel rank {empty} is empty while another rank's is not: "
                f"give each of the {topology.dp_size} ranks at least one batch."
            )
        yield current or MicroBatch(batch=last.batch, rows=0)


def as_micro_batch(item: Any) -> MicroBatch:
    """A batch with its number of rows, which is the length of its first tensor or list."""
    if isinstance(item, MicroBatch):
        return item
    if not isinstance(item, Mapping):
        raise DataError(f"A batch must be a dict of tensors or lists, and the dataloader gave a {type(item).__name__}.")
    batch = dict(item)
    rows = next((len(value) for value in batch.values() if _has_rows(value)), None)
    if rows is None:
        raise DataError(f"A batch must hold a tensor or a list, and the dataloader gave only {', '.join(batch)}.")
    return MicroBatch(batch=batch, rows=rows)


def _items(loader: Iterable[Any]) -> Iterable[Any]:
    """A CollieDataLoader is read with its counts of rows: as plain batches its fillers would look like rows."""
    if isinstance(loader, CollieDataLoader):
        return (micro_batch for step in loader.iterate(loader.epoch) for micro_batch in step)
    return loader


def prepared(micro_batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    """The batch on `device`, without padding rows beyond its real ones; a filler keeps all, to be run and dropped.

    Packs have no such rows: their loader gives fillers alone.
    """
    batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in micro_batch.batch.items()}
    if micro_batch.rows == 0 or "cu_seqlens" in batch:
        return batch
    return {key: value[: micro_batch.rows] if _has_rows(value) else value for key, value in batch.items()}


def _has_rows(value: Any) -> bool:
    return value.dim() > 0 if isinstance(value, Tensor) else isinstance(value, list)


def _everyones(state: int, topology: Topology) -> list[int]:
    """The state of each data-parallel rank, by rank."""
    if topology.dp_group is None:
        return [state]
    states = torch.zeros(topology.dp_size, dtype=torch.long, device=topology.device)
    states[topology.dp_rank] = state
    dist.all_reduce(states, group=topology.dp_group)
    return [int(each) for each in states]
