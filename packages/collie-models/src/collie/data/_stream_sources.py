"""Where the rows of a stream come from: anything that can be read from its beginning again, and skipped in."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from collie.data._sampler import seed_sequence
from collie.interfaces import DataError

_CHOICES = 4096  # draws of a mix that are made at once
_READ_AHEAD = 64  # rows that a `datasets` stream gives at once


class Item(NamedTuple):
    """One row as it was read, before anything was made of it.

    source: the name of its source in a mix, "" where there is one source. number: of the row in its source, from 0.
    """

    source: str
    number: int
    raw: Any


class RowSource(Protocol):
    """A source of rows. Everything about it can be pickled, so that data workers have it."""

    def items(self, seed: int, epoch: int, start: int) -> Iterator[Item]:
        """The rows of an epoch from number `start` on, in the source's own order."""
        ...

    def row(self, item: Item) -> Any:
        """What an item says, a mapping where it is sound. Raises DataError: it cannot be read."""
        ...

    def described(self) -> str:
        """What is known of the source without reading it, in words, to tell it from another."""
        ...


def source_of(data: Any, weights: Mapping[str, float] | None = None) -> RowSource:
    """The source that `data` stands for: see CollieStream.

    Raises DataError: nothing that can be read, or read again; weights that do not fit.
    """
    if isinstance(data, Mapping):
        return Mix({name: source_of(each) for name, each in data.items()}, dict(weights or dict.fromkeys(data, 1.0)))
    if weights is not None:
        raise DataError("weights are for a dict of several sources by name: CollieStream({'a': …, 'b': …}, weights=…).")
    if isinstance(data, str | Path):
        return Lines([Path(data)])
    if isinstance(data, list | tuple) and data and all(isinstance(each, str | Path) for each in data):
        return Lines([Path(each) for each in data])
    if callable(data) and not isinstance(data, Iterable):
        return Made(data)
    if not isinstance(data, Iterable):
        raise DataError(
            f"a {type(data).__name__} is no stream of rows: give an iterable, or a function that makes one."
        )
    if isinstance(data, Iterator):
        raise DataError(
            f"a {type(data).__name__} can be read once, and each epoch and each data worker reads from the beginning: "
            "give a function that makes a fresh one, such as the generator function itself without the call."
        )
    return Iterated(data)


@dataclass(frozen=True)
class Lines:
    """Files with one JSON object a line, one file after another. A row that is passed over is not parsed."""

    paths: Sequence[Path]

    def __post_init__(self) -> None:
        for path in self.paths:
            if not path.is_file():
                raise DataError(f"{path} is not a file: give .jsonl files, with a row a line.")

    def items(self, seed: int, epoch: int, start: int) -> Iterator[Item]:
        lines = (line for line in chain.from_iterable(map(_lines, self.paths)) if not line.isspace())
        return (Item("", index, line) for index, line in enumerate(islice(lines, start, None), start))

    def row(self, item: Item) -> Any:
        try:
            return json.loads(item.raw)
        except ValueError as error:  # of JSON or of UTF-8
            files = ", ".join(map(str, self.paths))
            raise DataError(
                f"row {item.number} of {files} is no JSON object ({error}): a stream reads one row a line."
            ) from error

    def described(self) -> str:
        return f"lines of {sum(path.stat().st_size for path in self.paths)} bytes"


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if file.peek(3)[:3] == b"\xef\xbb\xbf":  # a byte-order mark is no part of a row
            file.read(3)
        yield from file


@dataclass(frozen=True)
class Made:
    """What a function makes anew for every pass; one with a parameter `epoch` is told it. Skipping reads over rows."""

    make: Callable[..., Iterable[Any]]

    def items(self, seed: int, epoch: int, start: int) -> Iterator[Item]:
        told = "epoch" in inspect.signature(self.make).parameters
        rows = self.make(epoch=epoch) if told else self.make()
        return (Item("", index, row) for index, row in enumerate(islice(rows, start, None), start))

    def row(self, item: Item) -> Any:
        return item.raw

    def described(self) -> str:
        return "rows"


@dataclass(frozen=True)
class Iterated:
    """Anything that can be iterated again and again.

    Where it has a `set_epoch`, that is called, and skipping reads over rows: a `datasets` stream that is told another
    epoch gives its shards in another order, but not after its own `skip`. Else its `skip` is used where it has one.
    """

    data: Any

    def items(self, seed: int, epoch: int, start: int) -> Iterator[Item]:
        data, read_over = self.data, start
        if hasattr(data, "set_epoch"):
            data.set_epoch(epoch)
        elif start and hasattr(data, "skip"):
            data, read_over = data.skip(start), 0
        return (Item("", index, row) for index, row in enumerate(islice(_in_order(data), read_over, None), start))

    def row(self, item: Item) -> Any:
        return item.raw

    def described(self) -> str:
        return "rows"


def _in_order(data: Any) -> Iterator[Any]:
    """All rows, also in a data worker, where the iterator of a `datasets` stream would give that worker's share alone.

    Its `iter`, which gives columns of several rows, does not look at workers.
    """
    if not hasattr(data, "set_epoch") or not hasattr(data, "iter"):
        return iter(data)
    return (
        dict(zip(columns, values, strict=True))
        for columns in data.iter(batch_size=_READ_AHEAD)
        for values in zip(*columns.values(), strict=True)
    )


class Mix:
    """Several sources in the proportions of their weights; each begins again when it ends.

    Which source gives row i is drawn from (seed, epoch, i), whatever the sources hold. Skipping reads over rows.

    Raises DataError: no source, names that differ, a weight that is not positive.
    """

    def __init__(self, sources: Mapping[str, RowSource], weights: Mapping[str, float]) -> None:
        if not sources or sources.keys() != weights.keys():
            raise DataError(f"the sources {list(sources)} and the weights {list(weights)} differ: one weight for each.")
        for name, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise DataError(
                    f"weights[{name!r}]={weight!r} is no share: give a number above 0, or leave {name!r} out."
                )
        self._sources = dict(sources)
        self._names = list(sources)
        total = sum(weights.values())
        self._shares = [weights[name] / total for name in self._names]

    def items(self, seed: int, epoch: int, start: int) -> Iterator[Item]:
        chunk, within = divmod(start, _CHOICES)
        passed = np.bincount(self._choices(seed, epoch, chunk)[:within], minlength=len(self._names))
        for earlier in range(chunk):
            passed += np.bincount(self._choices(seed, epoch, earlier), minlength=len(self._names))
        reading = [
            _again_and_again(self._sources[name], name, seed, epoch, skip)
            for name, skip in zip(self._names, passed.tolist(), strict=True)
        ]
        while True:
            for number in self._choices(seed, epoch, chunk)[within:].tolist():
                yield next(reading[number])
            chunk, within = chunk + 1, 0

    def row(self, item: Item) -> Any:
        return self._sources[item.source].row(item)

    def described(self) -> str:
        return " and ".join(f"{name} ({source.described()})" for name, source in self._sources.items())

    def _choices(self, seed: int, epoch: int, chunk: int) -> np.ndarray:
        random = np.random.default_rng(seed_sequence(seed, epoch, chunk, 1))  # a path that no block's order has
        return random.choice(len(self._names), size=_CHOICES, p=self._shares)


def _again_and_again(source: RowSource, name: str, seed: int, epoch: int, skip: int) -> Iterator[Item]:
    """A source without end, from item `skip` on. Raises DataError: it has no rows."""
    while True:
        count = 0
        for item in source.items(seed, epoch, 0):
            count += 1
            if count > skip:
                yield item._replace(source=name)
        if count == 0:
            raise DataError(f"the source {name!r} has no rows: leave it out of the stream.")
        skip = skip % count if skip >= count else 0
