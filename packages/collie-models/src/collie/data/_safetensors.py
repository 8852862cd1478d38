"""Safetensors files of flat arrays, written piece by piece and read by mapping.

The library's own numpy writer takes all arrays in memory and copies them, and its reader copies what it reads: neither
serves a file that is larger than memory. The format is that of https://github.com/huggingface/safetensors: the header's
length in 8 bytes, the header as JSON, then the arrays one after another.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 8
_LARGEST_HEADER = 100_000_000  # bytes, as the library has it


@dataclass(frozen=True, slots=True)
class Pieces:
    """An array of one dimension and `length` elements, as pieces in their order."""

    dtype: np.dtype[Any]
    length: int
    pieces: Iterable[np.ndarray]


def write_arrays(path: Path, arrays: Mapping[str, Pieces], metadata: Mapping[str, str]) -> None:
    """Write arrays to a new file and to the disk behind it. No more than a piece of one is held in memory.

    Raises ValueError: pieces that are not as long as was said. OSError: the disk is full, and the like.
    """
    # large elements first, so that each array begins at a multiple of its element's size
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + arrays[name].length * arrays[name].dtype.itemsize
        header[name] = {
            "dtype": _NAMES[arrays[name].dtype],
            "shape": [arrays[name].length],
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _write(file, name, arrays[name])
        file.flush()
        os.fsync(file.fileno())


def _write(file: Any, name: str, array: Pieces) -> None:
    written = 0
    for piece in array.pieces:
        file.write(np.ascontiguousarray(piece, dtype=array.dtype).data)
        written += len(piece)
    if written != array.length:
        raise ValueError(f"{name} has {written} elements, and was to have {array.length}")


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file, mapped and read-only, and its metadata: pages are read when they are first used.

    Raises ValueError: the file is cut, or is no safetensors file of these types. OSError: it cannot be opened.
    """
    whole = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))  # as a plain array, whose slices are made faster
    start = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    if len(whole) < 8 or start > min(len(whole), _LARGEST_HEADER):
        raise ValueError("it has no safetensors header, or is cut")
    header = json.loads(whole[8:start].tobytes())
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    metadata = header.pop("__metadata__", {})
    data = whole[start:]
    arrays = {name: _view(data, name, entry) for name, entry in header.items()}
    if sum(array.nbytes for array in arrays.values()) != len(data):
        raise ValueError(f"it has {len(data)} bytes of data, and its header says another number")
    return arrays, metadata


def _view(data: np.ndarray, name: str, entry: Any) -> np.ndarray:
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
        fits = 0 <= start <= end <= len(data) and end - start == math.prod(shape) * dtype.itemsize
    except (KeyError, TypeError) as error:
        raise ValueError(f"its entry {name!r} is {entry!r}") from error
    if not fits:
        raise ValueError(f"its entry {name!r} lies outside of it, or is of another size: it is cut")
    return data[start:end].view(dtype).reshape(shape)
