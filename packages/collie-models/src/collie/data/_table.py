"""Token rows in flat arrays: a few bytes a token and no Python object a row, so that forked data workers share them."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from collie.data._rows import TOKEN_FIELDS, Tokens
from collie.interfaces import DataError

FILE_NAME = "collie-dataset.safetensors"
_FORMAT = "collie-dataset-1"


class TokenTable:
    """Rows of tokens, and whatever else each row carries.

    `columns`: for each token field one flat int32 array; row r is `offsets[r]:offsets[r + 1]` of it. `extras`:
    other fields of a row, kept as they came; a table where no row has any holds none.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], offsets: np.ndarray, extras: list[dict[str, Any]]) -> None:
        self.columns = columns
        self.offsets = offsets
        self.extras = extras

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[Tokens, dict[str, Any]]]) -> TokenTable:
        """Append rows one after another; nothing of a row is kept as a Python list."""
        flat = {name: array("i") for name in TOKEN_FIELDS}
        offsets = array("q", [0])
        extras: list[dict[str, Any]] = []
        for tokens, extra in rows:
            for name in TOKEN_FIELDS:
                flat[name].extend(getattr(tokens, name))
            offsets.append(len(flat["input_ids"]))
            extras.append(extra)
        columns = {name: np.frombuffer(values, dtype=np.int32) for name, values in flat.items()}
        return cls(columns, np.frombuffer(offsets, dtype=np.int64), extras if any(extras) else [])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> dict[str, Any]:
        """Row `number` as a dict: the token fields as lists of int, then the others."""
        start, end = self.offsets[number], self.offsets[number + 1]
        row: dict[str, Any] = {name: self.columns[name][start:end].tolist() for name in TOKEN_FIELDS}
        if self.extras:
            row.update(self.extras[number])
        return row

    def save(self, folder: Path, order: np.ndarray) -> None:
        """Write the rows of `order` to one safetensors file in `folder`, whole or not at all.

        Raises DataError: an extra field that JSON cannot hold.
        """
        lengths = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # for each token of the new table its place in this one
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][order] - offsets[:-1], lengths)
        tensors: dict[str, np.ndarray] = {
            name: np.ascontiguousarray(self.columns[name][places]) for name in TOKEN_FIELDS
        }
        tensors["offsets"] = offsets
        if self.extras:
            tensors["extras"] = _to_json([self.extras[number] for number in order.tolist()])
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{FILE_NAME}.{os.getpid()}"
        save_file(tensors, unfinished, metadata={"format": _FORMAT})
        os.replace(unfinished, folder / FILE_NAME)

    @classmethod
    def load(cls, folder: Path) -> TokenTable:
        """Read what `save` wrote. Nothing in the file is executed.

        Raises DataError: no such file, or one that is cut, of another format, or not consistent.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise DataError(
                f"{folder} holds no {FILE_NAME}: give the folder that save_processed wrote. "
                "Pickled shards of earlier versions are not read, because reading a pickle runs what is in it: "
                "build the dataset from its rows and save it again."
            )
        try:
            with safe_open(path, framework="np") as file:
                if (file.metadata() or {}).get("format") != _FORMAT:
                    raise DataError(f"{path} is a safetensors file, but not one that save_processed wrote.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            extras = json.loads(tensors.pop("extras").tobytes()) if "extras" in tensors else []
            offsets = tensors.pop("offsets")
            columns = {name: tensors[name] for name in TOKEN_FIELDS}
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} cannot be read ({error}): save the dataset again.") from error
        table = cls(columns, offsets, extras)
        table._check(path)
        return table

    def _check(self, path: Path) -> None:
        sound = (
            self.offsets.ndim == 1
            and len(self.offsets) > 0
            and self.offsets[0] == 0
            and bool((np.diff(self.offsets) >= 0).all())
            and all(column.shape == (self.offsets[-1],) for column in self.columns.values())
            and all(column.dtype == np.int32 for column in self.columns.values())
            and len(self.extras) in (0, len(self))
        )
        if not sound:
            raise DataError(f"{path} is not consistent: its rows and its tokens do not fit. Save the dataset again.")


def _to_json(extras: list[dict[str, Any]]) -> np.ndarray:
    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):  # tensors and arrays
            return value.tolist()
        raise TypeError(f"a {type(value).__name__} cannot be saved")

    try:
        text = json.dumps(extras, ensure_ascii=False, default=plain)
    except (TypeError, ValueError) as error:
        raise DataError(f"a field beside the tokens cannot be saved: {error}. Leave it out of the rows.") from error
    return np.frombuffer(text.encode(), dtype=np.uint8)
