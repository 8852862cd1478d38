"""Rows from JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from collie.interfaces import DataError


def read_json_rows(path: str | Path) -> list[Any]:
    """The rows of a JSON file that is a list, or of one with an object a line: the first character tells which.

    Raises DataError: no such file, or text that is no JSON, with its line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file: give a .json or .jsonl file of rows.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    start = text.lstrip()[:1]
    if start == "[":
        try:
            rows: list[Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} is no valid JSON: line {error.lineno}, {error.msg}.") from error
        return rows
    if start == "{":
        return [_line(line, number, path) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    what = f"begins with {start!r}" if start else "is empty"
    raise DataError(f"{path} {what}: a JSON list of rows, or one JSON object a line, is needed.")


def _line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {number} is no JSON object ({error.msg}): a file that begins with '{{' has one row a line; "
            "a file of one JSON value is a list of rows and begins with '['."
        ) from error
