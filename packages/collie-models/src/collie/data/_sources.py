"""Where rows come from, and how much of each source an epoch reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from collie.data._files import file_rows
from collie.data._table import FILE_NAME, TokenTable
from collie.interfaces import DataError


@dataclass(frozen=True, eq=False)
class Source:
    """Rows, and how they are mixed with those of other sources.

    Args:
        data: a path of a .json, .jsonl, .csv or .parquet file; a folder that `save_processed` wrote; a list of rows; a
            `datasets` Dataset, or a DatasetDict (any mapping of splits) with `split`; or an iterable, which is read
            once, to its end or to max_rows.
        name: what errors and the report call it; None means its path, or its place in the list of sources.
        weight: how many times an epoch reads each of its rows: 1.0 once, 3.0 three times, 0.5 a half of them, drawn
            by the dataset's seed; 2.5 twice, and a half of them once more. A larger weight with the same seed reads
            the rows of the smaller, and others. For shares p of an epoch take weight = p × rows of the epoch / rows.
        max_rows: how many of its rows are used, from the first; None for all.
        split: which split of a mapping.
        format: the name of its format, where its columns fit several; None finds it by the columns.

    Raises DataError: a weight that is not positive, max_rows below 1, a split that is needed, unknown or without use.
    """

    data: Any
    name: str | None = None
    weight: float = 1.0
    max_rows: int | None = None
    split: str | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.weight, Real) and math.isfinite(self.weight) and self.weight > 0):
            raise DataError(
                f"weight={self.weight!r} of a source: give a number above 0, or leave the source out of the list."
            )
        if self.max_rows is not None and not (isinstance(self.max_rows, int) and self.max_rows >= 1):
            raise DataError(f"max_rows={self.max_rows!r} of a source: give at least 1, or None for all of its rows.")
        if isinstance(self.data, Mapping):
            splits = ", ".join(map(repr, self.data))
            if self.split is None:
                raise DataError(
                    f"the data is a mapping of {splits}: say which, Source(data, split={next(iter(self.data), '')!r})."
                )
            if self.split not in self.data:
                raise DataError(f"split={self.split!r} is not in the data: it has {splits}.")
        elif self.split is not None:
            raise DataError(
                f"split={self.split!r} of a {type(self.data).__name__}, which has no splits: leave it out, or give "
                "the DatasetDict."
            )

    @property
    def selected(self) -> Any:
        """The data without its other splits; a path as a Path."""
        data = self.data[self.split] if isinstance(self.data, Mapping) else self.data
        return Path(data) if isinstance(data, str | Path) else data

    @property
    def streams(self) -> bool:
        """Whether the rows can only be read one after another, and perhaps once."""
        data = self.selected
        return not isinstance(data, Path) and not (hasattr(data, "__len__") and hasattr(data, "__getitem__"))

    @property
    def title(self) -> str:
        """What errors call it; "" for rows in memory that have no name."""
        if self.name is not None:
            return self.name
        return str(self.data) if isinstance(self.data, str | Path) else ""

    def table(self) -> TokenTable | None:
        """The tokens of a folder that `save_processed` wrote; None for everything else.

        Raises DataError: a folder that holds something else.
        """
        data = self.selected
        if not isinstance(data, Path) or not data.is_dir():
            return None
        if not (data / FILE_NAME).is_file() and any((data / name).is_file() for name in _OF_DATASETS):
            raise DataError(f"{data} was written by `datasets`: give Source(datasets.load_from_disk({str(data)!r})).")
        return TokenTable.load(data, mapped=True)

    def rows(self) -> Iterable[Any]:
        """All rows, raw, in order. Raises DataError: nothing that has rows, or a file that cannot be read."""
        data = self.selected
        if isinstance(data, Path):
            return file_rows(data)
        if not isinstance(data, Iterable):
            raise DataError(
                f"a {type(data).__name__} has no rows: give a path, a list of rows, or an iterable of them."
            )
        return data


_OF_DATASETS = ("dataset_dict.json", "dataset_info.json")


def as_sources(dataset: Any) -> list[Source]:
    """What a dataset is made of: one source, or several of a list. Raises DataError: a list of sources and others."""
    if isinstance(dataset, Source):
        return [dataset]
    if (
        isinstance(dataset, Sequence)
        and not isinstance(dataset, str)
        and len(dataset)
        and isinstance(dataset[0], Source)
    ):
        for number, source in enumerate(dataset):
            if not isinstance(source, Source):
                raise DataError(f"item {number} of the sources is a {type(source).__name__}: give Source({'…'}) each.")
        return list(dataset)
    return [Source(dataset)]
