"""Reading rows of a checkpoint's tensors, without the rest of it in memory."""

import json
import pickle
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from collie.interfaces import CheckpointError
from collie.models.weights._names import Rows


@dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint's header says of a tensor."""

    shape: tuple[int, ...]
    file: Path
    dtype: str


class Reader(ABC):
    """A checkpoint's tensors by the checkpoint's own names. Opening it reads headers only."""

    folder: Path
    tensors: Mapping[str, TensorInfo]

    @abstractmethod
    def parts(self, name: str, rows: Rows, columns: tuple[int, int] | None = None) -> list[Tensor]:
        """Return a tensor's row ranges as views of its file: nothing is read until they are copied.

        `columns` is a range of the second dimension, for what is wanted of each row.
        """

    def rows(
        self, name: str, rows: Rows, columns: tuple[int, int] | None = None, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return a tensor's row ranges, one after the other, on the CPU in `dtype`, by default the file's.

        At most one copy is made, in `dtype`; a single range in the file's own is a view of the file.
        """
        parts = self.parts(name, rows, columns)
        dtype = dtype if dtype is not None else parts[0].dtype
        if len(parts) == 1 and parts[0].is_contiguous():
            return parts[0].to(dtype)
        joined = torch.empty((sum(len(part) for part in parts), *parts[0].shape[1:]), dtype=dtype)
        for part, place in zip(parts, joined.split([len(part) for part in parts]), strict=True):
            place.copy_(part)
        return joined


def _described(part: Any, file: Path) -> TensorInfo:
    return TensorInfo(tuple(part.get_shape()), file, part.get_dtype())


def open_reader(folder: Path) -> Reader:
    """Open the weights of a Hugging Face folder: safetensors before torch's files, an index or one file.

    Raises:
        CheckpointError: there are none, a file that the index names is missing, or a header cannot be read.
    """
    for stem, reader in (("model.safetensors", _SafetensorsReader), ("pytorch_model.bin", _TorchReader)):
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return reader(folder, _indexed_files(index))
        if (folder / stem).is_file():
            return reader(folder, [folder / stem])
    raise CheckpointError(
        f"{folder} holds no weights: looked for model.safetensors and pytorch_model.bin, each alone or with an index "
        f"(.index.json). Give the folder that transformers' save_pretrained wrote."
    )


def open_indexed(index: Path) -> Reader:
    """Open the safetensors files that an index beside them names.

    Raises:
        CheckpointError: the index or a header cannot be read, or a file is missing.
    """
    return _SafetensorsReader(index.parent, _indexed_files(index))


def _indexed_files(index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("it names files outside its folder")
        files = [index.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weights: {error!r}. Fetch the file again.") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{index.name} names {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}, "
            f"which {index.parent} does not hold. Fetch the missing files."
        )
    return files


class _SafetensorsReader(Reader):
    def __init__(self, folder: Path, files: list[Path]) -> None:
        self.folder = folder
        self._files: dict[Path, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file in files:
            try:
                opened = self._files[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} is not a whole safetensors file: {error}. Fetch it again.") from error
            for name in opened.keys():  # noqa: SIM118  # it is no dict
                self.tensors[name] = _described(opened.get_slice(name), file)

    def parts(self, name: str, rows: Rows, columns: tuple[int, int] | None = None) -> list[Tensor]:
        part = self._files[self.tensors[name].file].get_slice(name)
        if columns is not None:
            return [part[start:stop, columns[0] : columns[1]] for start, stop in rows]
        if not self.tensors[name].shape:  # one value, which stands for one row
            return [part[...].reshape(1)]
        return [part[start:stop] for start, stop in rows]


class _TorchReader(Reader):
    """torch.save's files: only tensors are unpickled.

    They are mapped into memory, and only rows that are read are copied; those that torch wrote before 1.6, which are no
    zip archives, cannot be mapped and are held whole.
    """

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self.folder = folder
        self._mapped: dict[str, Tensor] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file in files:
            for name, tensor in _load(file).items():
                self._mapped[name] = tensor
                self.tensors[name] = TensorInfo(tuple(tensor.shape), file, str(tensor.dtype))

    def parts(self, name: str, rows: Rows, columns: tuple[int, int] | None = None) -> list[Tensor]:
        tensor = self._mapped[name]
        if columns is not None:
            tensor = tensor[:, columns[0] : columns[1]]
        return [tensor[start:stop] for start, stop in rows]


def _load(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle ends in an error of almost any class
        reason = _reason(error)
        if _is_refusal(error):
            raise CheckpointError(
                f"{file} holds more than tensors: {reason}. CoLLiE runs no code from a checkpoint; "
                "convert it to safetensors where you trust it."
            ) from error
        raise CheckpointError(f"{file} is not a whole file of torch's: {reason}. Fetch it again.") from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{file} is not a whole file of torch's: it holds a {type(loaded).__name__}, not tensors by name. "
            "Fetch it again."
        )
    return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}


def _reason(error: Exception) -> str:
    """The part of torch's message that says what was met, without its advice to load the file with everything in it."""
    text = str(error).strip()
    if told := re.search(r"WeightsUnpickler error:\s*(?:Unsupported global: GLOBAL ([\w.]+)|(.+))", text):
        text = told[1] or told[2]
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _is_refusal(error: Exception) -> bool:
    """Whether torch's unpickler understood the file and met what it does not make; else the file is damaged."""
    damage = ("Unsupported operand", "String is too long", "Invalid magic number", "Corrupt")
    return isinstance(error, pickle.UnpicklingError) and not any(words in str(error) for words in damage)
