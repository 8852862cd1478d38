"""Fields of rows beside their tokens, as JSON in one flat array of bytes: no Python object a row until it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collie.interfaces import DataError

Extras = Sequence[Mapping[str, Any]]


class UnsavableField(DataError):
    """A field of a row beside its tokens is nothing that JSON can hold."""


class JsonExtras(Sequence[Mapping[str, Any]]):
    """Fields of rows as JSON in one array of bytes, decoded when they are read; a row of no bytes has no fields."""

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(text) or (np.diff(offsets) < 0).any():
            raise ValueError("its extras do not fit their offsets")
        self.text, self.offsets = text, offsets

    @classmethod
    def of(cls, extras: Extras) -> JsonExtras:
        """Raises UnsavableField."""
        texts = [encoded_extra(extra) for extra in extras]
        sizes = np.array([len(text) for text in texts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(texts), dtype=np.uint8), offsets_of(sizes))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: Any) -> Any:
        part = self.text[self.offsets[number] : self.offsets[number + 1]]
        return json.loads(part.tobytes().decode("utf-8", "surrogatepass")) if len(part) else {}


def encoded_extra(extra: Mapping[str, Any]) -> bytes:
    """Fields as JSON, arrays and tensors as lists; nothing for no fields. Raises UnsavableField."""
    if not extra:
        return b""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):  # tensors and arrays
            return value.tolist()
        raise TypeError(f"a {type(value).__name__} cannot be saved")

    try:
        return json.dumps(extra, ensure_ascii=False, default=plain).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError) as error:
        what = f"a field beside the tokens cannot be saved: {error}"
        raise UnsavableField(f"{what}. Leave it out of the rows.") from error


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where each of the rows begins in a flat array, and where the last ends: int64, one more than rows."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
