"""From encoded rows to a table: chunks of flat arrays, which cost little to send, one after another into columns."""

from __future__ import annotations

import io
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from collie.data._extras import JsonExtras, encoded_extra, offsets_of
from collie.data._rows import Encoded, Refused
from collie.data._table import TokenTable
from collie.module import IGNORE_INDEX

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """What some rows in turn became.

    input_ids [tokens] and targets [tokens], whether the label is the token (else it is -100), in the rows' order.
    attention_mask and labels [tokens] are there only where they are not what the two say: 1, and those labels.
    lengths, uncut and inside_turn [rows]. extras: for each row its other fields, or their JSON; none where all are
    empty. refused: rows that are not among them.
    """

    input_ids: np.ndarray
    targets: np.ndarray
    attention_mask: np.ndarray | None
    labels: np.ndarray | None
    lengths: np.ndarray
    uncut: np.ndarray
    inside_turn: np.ndarray
    extras: Sequence[Mapping[str, Any]] | Sequence[bytes]
    refused: Sequence[Refused]

    @classmethod
    def of(cls, results: Sequence[Encoded | Refused], *, as_json: bool = False) -> Chunk:
        """The arrays of an encoder's results. Raises UnsavableField: `as_json`, and it cannot be."""
        rows = [result for result in results if isinstance(result, Encoded)]
        input_ids = _flat([row.tokens.input_ids for row in rows])
        masks = [row.tokens.attention_mask for row in rows]
        labels = _flat([row.tokens.labels for row in rows])
        targets = labels != IGNORE_INDEX
        extras: list[Any] = [encoded_extra(row.extra) for row in rows] if as_json else [row.extra for row in rows]
        return cls(
            input_ids,
            targets,
            None if all(mask.count(1) == len(mask) for mask in masks) else _flat(masks),
            None if (labels[targets] == input_ids[targets]).all() else labels,
            np.array([len(row.tokens.input_ids) for row in rows], dtype=np.int64),
            np.array([row.uncut for row in rows], dtype=np.int64),
            np.array([row.inside_turn for row in rows], dtype=np.bool_),
            extras if any(extras) else [],
            [result for result in results if isinstance(result, Refused)],
        )

    @property
    def rows(self) -> int:
        """Rows that came in, refused ones included."""
        return len(self.lengths) + len(self.refused)


def _flat(lists: Sequence[list[int]]) -> np.ndarray:
    return np.frombuffer(array("i", list(chain.from_iterable(lists))), dtype=np.int32)


class TableBuilder:
    """Appends chunks, in memory or, given a folder, to files there, whatever the size of the table.

    With a folder the chunks' extras are JSON, and the finished table needs the files until it has been saved. Leaving
    the context closes the files, of which the table has its own mapping.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._input_ids = _Column(folder, "input_ids", np.int32)
        self._targets = _Column(folder, "targets", np.bool_)
        self._text = _Column(folder, "extras", np.uint8)
        self._extras: list[Mapping[str, Any]] = []
        self._extra_sizes: list[int] = []
        self._masks: list[tuple[int, np.ndarray]] = []  # exceptions, and where each begins
        self._labels: list[tuple[int, np.ndarray]] = []
        self._chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._refused: list[Refused] = []

    def __enter__(self) -> TableBuilder:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._folder is not None:
            for column in (self._input_ids, self._targets, self._text):
                column.close()

    def add(self, chunk: Chunk) -> None:
        """Append its rows. Raises OSError: the disk is full, and the like."""
        start = self._input_ids.length
        self._input_ids.append(chunk.input_ids)
        self._targets.append(chunk.targets)
        for exceptions, values in ((self._masks, chunk.attention_mask), (self._labels, chunk.labels)):
            if values is not None:
                exceptions.append((start, values))
        self._chunks.append((chunk.lengths, chunk.uncut, chunk.inside_turn))
        self._refused.extend(chunk.refused)
        self._add_extras(chunk)

    def _add_extras(self, chunk: Chunk) -> None:
        rows = len(chunk.lengths)
        if self._folder is None:
            self._extras.extend(chunk.extras or [{}] * rows)  # type: ignore[arg-type]
            return
        texts: Sequence[Any] = chunk.extras or [b""] * rows
        self._extra_sizes.extend(map(len, texts))
        self._text.append(np.frombuffer(b"".join(texts), dtype=np.uint8))

    def finish(self) -> TokenTable:
        """The table of all rows. The builder is of no use afterwards."""
        columns = {"input_ids": self._input_ids.array(), "targets": self._targets.array()}
        if self._labels:
            usual = np.where(columns.pop("targets"), columns["input_ids"], np.int32(IGNORE_INDEX))
            columns["labels"] = _overwritten(usual, self._labels)
        if self._masks:
            columns["attention_mask"] = _overwritten(np.ones(self._input_ids.length, dtype=np.int32), self._masks)
        none = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))]
        lengths, uncut, inside_turn = (np.concatenate(parts) for parts in zip(*(self._chunks or none), strict=True))
        return TokenTable(
            columns,
            offsets_of(lengths),
            self._finished_extras(),
            uncut=uncut,
            inside_turn=inside_turn,
            refused=self._refused,
        )

    def _finished_extras(self) -> Sequence[Mapping[str, Any]]:
        if self._folder is None:
            return self._extras if any(self._extras) else ()
        if not self._text.length:
            return ()
        return JsonExtras(self._text.array(), offsets_of(np.array(self._extra_sizes)))


class _Column:
    """An array that grows, in memory or in a file of a folder."""

    def __init__(self, folder: Path | None, name: str, dtype: type[np.generic]) -> None:
        self._path = None if folder is None else folder / f"{name}.column"
        self._file: IO[bytes] = io.BytesIO() if self._path is None else self._path.open("xb")
        self._dtype = np.dtype(dtype)
        self.length = 0

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.length += len(values)

    def close(self) -> None:
        with suppress(OSError):  # on a full disk, of which `append` has told
            self._file.close()

    def array(self) -> np.ndarray:
        if isinstance(self._file, io.BytesIO):
            return np.frombuffer(self._file.getbuffer(), dtype=self._dtype)
        self._file.flush()
        if not self.length:  # nothing cannot be mapped
            return np.empty(0, dtype=self._dtype)
        assert self._path is not None
        return np.asarray(np.memmap(self._path, dtype=self._dtype, mode="r"))


def _overwritten(values: np.ndarray, exceptions: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    for start, piece in exceptions:
        values[start : start + len(piece)] = piece
    return values
