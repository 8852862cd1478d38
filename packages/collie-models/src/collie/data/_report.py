"""What became of a dataset's rows: counts by source, lengths, what was cut and what was left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from collie.data._mixture import Mixture

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
_REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source of a dataset. Counts are of what an epoch reads, a row that it reads twice counted twice.

    Attributes:
        name: the source's, "" for rows in memory that have none.
        format: the formats of its rows, as their first hundred tell.
        weight: how many times an epoch reads each row.
        usable: its rows that can be read, each counted once.
        rows: rows of an epoch from it.
        tokens: of those rows, within max_length.
        targets: tokens of those rows whose label is not -100.
        truncated: of those rows, how many max_length cut.
        inside_turn: of the truncated, how many were cut within an answer, which so lost its end.
        skipped: (index in the source, reason) for each row that cannot be used.
        lengths: percentile → tokens of a row, after the cut.
    """

    name: str
    format: str
    weight: float
    usable: int
    rows: int
    tokens: int
    targets: int
    truncated: int
    inside_turn: int
    skipped: tuple[tuple[int, str], ...]
    lengths: dict[int, int]


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a dataset holds, by source in their order, and in all: the length percentiles of all rows together."""

    sources: tuple[SourceReport, ...]
    lengths: dict[int, int]

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def tokens(self) -> int:
        return sum(source.tokens for source in self.sources)

    @property
    def targets(self) -> int:
        return sum(source.targets for source in self.sources)

    @property
    def truncated(self) -> int:
        return sum(source.truncated for source in self.sources)

    @property
    def inside_turn(self) -> int:
        return sum(source.inside_turn for source in self.sources)

    @property
    def skipped(self) -> int:
        return sum(len(source.skipped) for source in self.sources)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the totals, and under "sources" a dict for each. Percentiles are strings there, as in JSON."""
        named = {str(key): value for key, value in self.lengths.items()}
        totals = {name: getattr(self, name) for name in ("rows", *_COUNTS, "skipped")}
        sources = []
        for source in self.sources:
            plain = asdict(source)
            plain["lengths"] = {str(key): value for key, value in source.lengths.items()}
            plain["skipped"] = [{"index": index, "reason": reason} for index, reason in source.skipped]
            sources.append(plain)
        return {**totals, "lengths": named, "sources": sources}

    def __str__(self) -> str:
        """A table with a line a source, and below it the first reasons for which rows were left out."""
        lines = [
            (
                "source",
                "format",
                "weight",
                "rows",
                *(_HEADINGS[name] for name in _COUNTS),
                "skipped",
                "length 50% / 95% / max",
            )
        ]
        for number, source in enumerate(self.sources):
            counts = [f"{getattr(source, name):,}" for name in ("rows", *_COUNTS)]
            name = source.name or f"source {number}"
            lines.append(
                (name, source.format, f"{source.weight:g}", *counts, f"{len(source.skipped):,}", _span(source.lengths))
            )
        if len(self.sources) > 1:
            counts = [f"{getattr(self, name):,}" for name in ("rows", *_COUNTS, "skipped")]
            lines.append(("all", "", "", *counts, _span(self.lengths)))
        return "\n".join([_aligned(lines), *self._reasons()])

    def _reasons(self) -> list[str]:
        reasons = []
        for source in self.sources:
            shown = source.skipped[:_REASONS_SHOWN]
            reasons += [f"skipped: {source.name + ': ' if source.name else ''}{reason}" for _, reason in shown]
            if len(source.skipped) > len(shown):
                reasons.append(f"skipped: and {len(source.skipped) - len(shown):,} more")
        return reasons


_COUNTS = ("tokens", "targets", "truncated", "inside_turn")
_HEADINGS = {"tokens": "tokens", "targets": "targets", "truncated": "truncated", "inside_turn": "inside a turn"}


def report_of(mixture: Mixture, order: np.ndarray) -> DataReport:
    """The report of the rows of `order`. Reads the labels of every token once."""
    return DataReport(
        tuple(_source_report(mixture, number, order) for number in range(len(mixture.parts))),
        _percentiles(mixture.lengths(order)),
    )


def _source_report(mixture: Mixture, number: int, order: np.ndarray) -> SourceReport:
    part, rows = mixture.parts[number], mixture.rows_of(number, order)
    table = part.table
    lengths = np.diff(table.offsets)[rows]
    return SourceReport(
        name=part.title,
        format=part.format,
        weight=part.source.weight,
        usable=part.rows,
        rows=len(rows),
        tokens=int(lengths.sum()),
        targets=int(table.target_counts()[rows].sum()),
        truncated=int((np.asarray(table.uncut)[rows] > lengths).sum()),
        inside_turn=int(np.asarray(table.inside_turn)[rows].sum()),
        skipped=tuple((refused.index, refused.reason) for refused in part.skipped),
        lengths=_percentiles(lengths),
    )


def _percentiles(lengths: np.ndarray) -> dict[int, int]:
    if not len(lengths):
        return {}
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")  # lengths that rows have, none in between
    return {percentile: int(value) for percentile, value in zip(PERCENTILES, values, strict=True)}


def _span(lengths: dict[int, int]) -> str:
    return " / ".join(f"{lengths[percentile]:,}" for percentile in (50, 95, 100)) if lengths else "-"


def _aligned(lines: list[tuple[str, ...]]) -> str:
    """Columns apart by two spaces: the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if place < 2 else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
