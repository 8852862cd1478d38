"""From sources to tables of tokens: what is read, what is kept from an earlier time, and what a bad row is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from collie.data._content import content_of
from collie.data._encoders import RowEncoder
from collie.data._formats import PROCESSED
from collie.data._mixture import Part
from collie.data._rows import Refused
from collie.data._sources import Source
from collie.data._table import TokenTable
from collie.data._tokenise import tokenised
from collie.interfaces import DataError

_LOOKED_AT = 100  # rows whose formats are reported

OnBadRow = Literal["raise", "skip"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How sources are read.

    on_bad_row: "raise" a DataError that names it, or "skip" and count it.
    processes: how many tokenise; None chooses.
    cache: keep tokens on disk by what the rows contain: None those of files and of `datasets`, True also those of
        lists, False none.
    progress: whether a terminal shows a bar.

    Raises DataError: another on_bad_row.
    """

    on_bad_row: OnBadRow = "raise"
    processes: int | None = None
    cache: bool | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("raise", "skip"):
            raise DataError(f"on_bad_row={self.on_bad_row!r}: give 'raise' or 'skip'.")


def parts_of(
    sources: Sequence[Source], encoder_of: Callable[[str | None], RowEncoder], max_length: int, reading: Reading
) -> list[Part]:
    """The sources with their tokens.

    encoder_of: a source's `format` → its encoder. max_length: as the encoders have it.
    Raises DataError: a source without a row that can be used; or, unless they are skipped, a row that cannot, named by
    source and index.
    """
    encoders = {format: encoder_of(format) for format in dict.fromkeys(source.format for source in sources)}
    several = len(sources) > 1
    return [
        _part(
            source,
            source.title or (f"source {number}" if several else ""),
            encoders[source.format],
            max_length,
            reading,
        )
        for number, source in enumerate(sources)
    ]


def _part(source: Source, title: str, encoder: RowEncoder, max_length: int, reading: Reading) -> Part:
    saved = source.table()
    if saved is not None and (max_length < 0 or not len(saved) or saved.lengths.max() <= max_length):
        return with_rows(Part(source, title, PROCESSED, saved))
    rows = _rows_of(saved) if saved is not None else source.rows()
    content = None if saved is not None else _content(source, title, reading.cache)
    if content is None and source.max_rows is not None:  # with a cache all are kept, whatever max_rows is next time
        rows = rows[: source.max_rows] if isinstance(rows, list) else islice(rows, source.max_rows)
    first, rows = _peek(source, rows)
    skipped: list[Refused] = []

    def refuse(refused: Refused) -> None:
        if source.max_rows is not None and refused.index >= source.max_rows:
            return
        if reading.on_bad_row == "raise":
            raise DataError(f"{title}: {refused.reason}" if title else refused.reason)
        skipped.append(refused)

    table = tokenised(
        rows,
        encoder,
        content=content,
        processes=reading.processes,
        progress=(title or "rows") if reading.progress else None,
        on_refused=refuse,
    )
    return with_rows(Part(source, title, _formats_of(first, encoder), table, skipped))


def with_rows(part: Part) -> Part:
    """The part. Raises DataError: it has no row that can be used."""
    if part.rows:
        return part
    where = f"{part.title}: " if part.title else ""
    if not part.skipped:
        raise DataError(f"{where}the dataset has no rows: nothing can be trained or evaluated on it.")
    raise DataError(
        f"{where}none of the {len(part.skipped)} rows can be used, and all were skipped. Why the first was: "
        f"{part.skipped[0].reason}"
    )


def _rows_of(table: TokenTable) -> Iterator[dict[str, Any]]:
    return (table.row(number) for number in range(len(table)))


def _content(source: Source, title: str, cache: bool | None) -> str | None:
    """A digest of the rows where their tokens are to be kept."""
    data = source.selected
    if cache is False or (cache is None and isinstance(data, list | tuple)):
        return None
    if isinstance(data, Path) and not data.is_file():
        return None  # reading it says so
    content = content_of(data)
    if content is None and cache:
        raise DataError(
            f"cache=True: what {title or 'the dataset'} contains ({type(data).__name__}) cannot be told before it is "
            "read, so that its tokens cannot be kept. Give a file, a `datasets` dataset or a list of plain dicts."
        )
    return content


def _peek(source: Source, rows: Iterable[Any]) -> tuple[list[Any], Iterable[Any]]:
    """The first rows, and all of them."""
    if isinstance(source.selected, Path) and not source.selected.is_dir():
        return list(islice(source.rows(), _LOOKED_AT)), rows
    if iter(rows) is not rows:
        return list(islice(rows, _LOOKED_AT)), rows
    first = list(islice(rows, _LOOKED_AT))
    return first, chain(first, rows)


def _formats_of(rows: Sequence[Any], encoder: RowEncoder) -> str:
    names: dict[str, None] = {}  # in the order in which they come
    for index, row in enumerate(rows):
        try:
            names[encoder.formats.of(row, index).name] = None
        except DataError:  # it was skipped
            continue
    return ", ".join(names)
