"""Rows of files, one after another: no file is ever whole in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from collie.interfaces import DataError, require

_LARGEST_FIELD = 2**31 - 1  # bytes; csv's own limit of 128 KiB is less than one long document

_PIECE = 1 << 20  # characters of a JSON list that are read at once


def file_rows(path: Path) -> Iterator[Any]:
    """The rows of a file, read as they are asked for: by its suffix .csv or .parquet, else JSON by what it holds.

    Raises:
        DataError: no such file, or one that cannot be read, with the line.
        MissingExtraError: a .parquet file without pyarrow.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file: give a .json, .jsonl, .csv or .parquet file of rows.")
    return READERS.get(path.suffix.lower(), json_rows)(path)


def json_rows(path: Path) -> Iterator[Any]:
    """The rows of a JSON file that is a list, or of one with an object a line: the first character tells which."""
    try:
        start = _first_character(path)
        if start == "[":
            yield from _json_list(path)
        elif start == "{":
            yield from _json_lines(path)
        else:
            what = f"begins with {start!r}" if start else "is empty"
            raise DataError(f"{path} {what}: a JSON list of rows, or one JSON object a line, is needed.")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error}): save it as UTF-8, or, if it is no JSON, give a .csv or .parquet file."
        ) from error


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file whose first line names the columns. Every value is a string."""
    csv.field_size_limit(_LARGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or ()
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise DataError(f"{path} has the column {twice!r} twice: one of them would be lost. Rename it.")
            for row in reader:
                if None in row or None in row.values():
                    found = len(row) - 1 + len(row[None]) if None in row else sum(v is not None for v in row.values())
                    raise DataError(
                        f"{path} line {reader.line_num} has {found} values for the "
                        f"{len(names)} columns of its first line: quote values that hold commas."
                    )
                yield row
    except csv.Error as error:
        raise DataError(f"{path} is no valid CSV behind line {reader.line_num}: {error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, a batch of them in memory at a time."""
    parquet = require("pyarrow.parquet", "collie-models[datasets]", f"{path}")
    arrow = require("pyarrow", "collie-models[datasets]", f"{path}")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except arrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error


READERS: Mapping[str, Callable[[Path], Iterator[Any]]] = MappingProxyType(
    {".json": json_rows, ".jsonl": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}
)


def _first_character(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        while piece := file.read(_PIECE):  # no line, which may be the whole file
            if text := piece.lstrip():
                return text[0]
    return ""


def _json_list(path: Path) -> Iterator[Any]:
    """The items of a JSON list one by one, so that a large file is never whole in memory."""
    with path.open(encoding="utf-8-sig") as file:
        text = _Text(file, path)
        text.skip("[")
        if text.next() == "]":
            text.skip("]")
        else:
            while True:
                yield text.value()
                if text.next() == "]":
                    text.skip("]")
                    break
                text.skip(",")
        if text.next():
            raise text.error("something stands behind the list")


class _Text:
    """A JSON text that is read piece by piece."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._text, self._at, self._line = "", 0, 1
        self._decoder = json.JSONDecoder()

    def next(self) -> str:
        """The next character that is no white space, "" at the end. It stays."""
        while True:
            start = self._at
            while self._at < len(self._text) and self._text[self._at] in " \t\n\r":
                self._at += 1
            self._line += self._text.count("\n", start, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self, expected: str) -> None:
        """Pass the next character. Raises DataError: it is another."""
        if self.next() != expected:
            raise self.error(f"expecting {expected!r}")
        self._at += 1

    def value(self) -> Any:
        """Pass the next value. Raises DataError: there is none."""
        self.next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                raise self.error(error.msg, self._text.count("\n", self._at, error.pos)) from error
            if end == len(self._text) and self._more():  # of a number the rest may follow
                continue
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            return value

    def error(self, why: str, further_lines: int = 0) -> DataError:
        return DataError(f"{self._path} is no valid JSON: line {self._line + further_lines}, {why}.")

    def _more(self) -> bool:
        """Read on, as much again as is still unread: so that a long value is decoded a few times and not often."""
        self._text = self._text[self._at :]
        self._at = 0
        piece = self._file.read(max(_PIECE, len(self._text)))
        self._text += piece
        return bool(piece)


def _json_lines(path: Path) -> Iterator[Any]:
    # newline: JSON leaves U+2028 and a lone \r alone inside of a text, so that only \n ends a row
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _line(line, number, path)


def _line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {number} is no JSON object ({error.msg}): a file that begins with '{{' has one row a line; "
            "a file of one JSON value is a list of rows and begins with '['."
        ) from error
