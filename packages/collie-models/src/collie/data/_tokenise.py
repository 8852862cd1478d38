"""Rows through an encoder, once: in several processes, with a progress bar, and from the cache the next time."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from collie.data._build import Chunk, TableBuilder
from collie.data._cache import NotCached, cached, digest_of
from collie.data._extras import UnsavableField
from collie.data._pool import here, in_order
from collie.data._rows import Encoded, Refused
from collie.data._table import TokenTable
from collie.interfaces import DataError

logger = logging.getLogger(__name__)

_CHUNK = 256  # rows a task
_FEW = 4  # chunks for which no processes are started

Row = Mapping[str, Any]


class Encoder(Protocol):
    """Makes tokens of rows, alike for every way of cutting the rows into calls. Forked processes have copies of it."""

    def fingerprint(self) -> str:
        """What its results depend on besides the rows: the tokenizer's content, a template, options."""

    def encode(self, rows: Sequence[Row], indices: Sequence[int]) -> list[Encoded | Refused]:
        """One result a row, in order. `indices` are the rows' numbers in their source."""


def tokenised(
    rows: Iterable[Row],
    encoder: Encoder,
    *,
    content: str | None = None,
    processes: int | None = None,
    progress: str | None = None,
    on_refused: Callable[[Refused], None] | None = None,
) -> TokenTable:
    """The table of all rows that the encoder does not refuse, in their order.

    With `content` the table is kept in the cache (see `cache_folder`), by it and the encoder's fingerprint. Then it is
    mapped from there, other fields of a row are what JSON makes of them, and `rows` are not read if they were
    tokenised before. Of several processes that ask for the same table at a time, such as the ranks of a node, one
    makes it. Where it cannot be kept (a disk that is full, a field that is no JSON) a warning says why, and it is made
    in memory.

    Args:
        rows: a sequence is shared with the processes that tokenise; another iterable is read here, as they need it.
        content: a digest of the rows (see `content_of`).
        processes: how many tokenise; 1 is this one. None: one for each CPU that this process may use, or with no
            cache, where all ranks tokenise, its share of them. Few rows are tokenised here, and a daemonic process,
            which may have no children, tokenises here.
        progress: what a progress bar is called, on a terminal; None for no bar.
        on_refused: called for each row that the encoder refuses, in order and once, also of a table from the cache;
            what it raises ends the work.

    Raises:
        DataError: an encoder failed, or a process died; it names the rows.
        CollieError: the encoder raised it.
    """
    if processes is not None and (not isinstance(processes, int) or processes < 1):
        raise DataError(f"processes={processes!r}: at least 1 is needed, which is this process, or None to choose.")
    work = _Work(rows, encoder, processes or _cpus(shared=content is None), progress, on_refused)
    if content is None:
        return work.table()
    try:
        table, made_now = cached(digest_of(content, encoder.fingerprint()), work.table)
    except (NotCached, UnsavableField) as reason:
        if work.begun and iter(rows) is rows:  # what was read of it is gone
            raise DataError(f"the tokens cannot be kept in the cache: {reason}. Tokenise without a cache.") from reason
        logger.warning("The tokens cannot be kept in the cache, and are made in memory: %s", reason)
        return work.table()
    if not made_now:
        for refused in table.refused:
            work.tell(refused)
    return table


@dataclass
class _Work:
    """The making of one table, begun again where the cache fails."""

    rows: Iterable[Row]
    encoder: Encoder
    processes: int
    progress: str | None
    on_refused: Callable[[Refused], None] | None
    begun: bool = field(default=False, init=False)
    told: int = field(default=-1, init=False)  # the last refused row that on_refused knows of

    def table(self, folder: Path | None = None) -> TokenTable:
        """In memory, or over files in `folder`, with extras as JSON."""
        self.begun = True
        total = len(self.rows) if isinstance(self.rows, Sized) else None
        with (
            TableBuilder(folder) as builder,
            closing(self._chunks(as_json=folder is not None)) as chunks,
            tqdm(total=total, desc=self.progress, unit=" rows", disable=self.progress is None or None) as bar,
        ):
            for chunk in chunks:
                for refused in chunk.refused:
                    self.tell(refused)
                builder.add(chunk)
                bar.update(chunk.rows)
            return builder.finish()

    def tell(self, refused: Refused) -> None:
        """Call on_refused, once for each row."""
        if self.on_refused is not None and refused.index > self.told:
            self.told = refused.index
            self.on_refused(refused)

    def _chunks(self, as_json: bool) -> Generator[Chunk, None, None]:
        tasks = _tasks(self.rows)
        first = list(islice(tasks, _FEW))
        tasks = chain(first, tasks)

        def encode(task: _Task) -> Chunk:
            rows = task.rows if task.rows is not None else _part(self.rows, task.indices)
            return Chunk.of(self.encoder.encode(rows, task.indices), as_json=as_json)

        if self.processes == 1 or len(first) < _FEW or multiprocessing.current_process().daemon:
            return here(encode, tasks, str)
        return in_order(encode, tasks, self.processes, str, queued=int(_has_places(self.rows)))


@dataclass(frozen=True, slots=True)
class _Task:
    """Some rows by their indices; themselves, too, where they cannot be had by these."""

    indices: range
    rows: Sequence[Row] | None = None

    def __str__(self) -> str:
        return f"rows {self.indices.start} to {self.indices.stop - 1}"


def _tasks(rows: Any) -> Iterator[_Task]:
    if _has_places(rows):
        for start in range(0, len(rows), _CHUNK):
            yield _Task(range(start, min(start + _CHUNK, len(rows))))
        return
    read = iter(rows)
    for start in count(step=_CHUNK):
        part = list(islice(read, _CHUNK))
        if not part:
            return
        yield _Task(range(start, start + len(part)), part)


def _has_places(rows: Any) -> bool:
    return hasattr(rows, "__len__") and hasattr(rows, "__getitem__")


def _part(rows: Any, indices: range) -> Sequence[Row]:
    """Rows by their places; in one call where they can be had so, as those of `datasets`."""
    together: Callable[[list[int]], Sequence[Row]] | None = getattr(rows, "__getitems__", None)
    return together(list(indices)) if together is not None else [rows[index] for index in indices]


def _cpus(*, shared: bool) -> int:
    """How many CPUs this process may use; of those of its node, as many as each rank has."""
    cpus = len(os.sched_getaffinity(0))
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if shared else cpus
