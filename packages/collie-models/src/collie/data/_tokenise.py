"""A stand-in until tables are made by several processes and kept on disk: in this process, kept in its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from collie.data._build import Chunk, TableBuilder
from collie.data._rows import Encoded, Refused
from collie.data._table import TokenTable

_KEPT: dict[tuple[str, str], TokenTable] = {}


class Encoder(Protocol):
    def fingerprint(self) -> str: ...

    def encode(self, rows: Sequence[Any], indices: Sequence[int]) -> list[Encoded | Refused]: ...


def tokenised(
    rows: Iterable[Mapping[str, Any]],
    encoder: Any,
    *,
    content: str | None,
    processes: int = 1,
    progress: str | None = None,
    on_refused: Callable[[Refused], None] | None = None,
) -> TokenTable:
    key = None if content is None else (content, encoder.fingerprint())
    if key in _KEPT:
        for refused in _KEPT[key].refused:
            if on_refused is not None:
                on_refused(refused)
        return _KEPT[key]
    builder = TableBuilder()
    numbered = enumerate(rows)
    while chunk := list(islice(numbered, 1024)):
        results = encoder.encode([row for _, row in chunk], [index for index, _ in chunk])
        for result in results:
            if isinstance(result, Refused) and on_refused is not None:
                on_refused(result)
        builder.add(Chunk.of(results))
    table = builder.finish()
    if key is not None:
        _KEPT[key] = table
    return table
