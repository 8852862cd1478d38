"""Tensors of a training state, named and ordered as the weights that they belong to are in a checkpoint."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from collie.interfaces import CheckpointError
from collie.models.weights._checkpoint import elements, rows_of
from collie.models.weights._names import Rename, Rows, inverse
from collie.models.weights._reader import Reader, TensorInfo, open_indexed
from collie.parallel import FIXED, Fill

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class StateNames(Protocol):
    """What names a model's tensors in its checkpoints: a family's `Names`, or `SameNames`."""

    def to_checkpoint(self, ours: str) -> tuple[str, Rename]:
        """Return the checkpoint's name of our parameter, and the entry that orders its rows."""
        ...

    def ignores(self, checkpoint: str) -> bool:
        """Whether the checkpoint's tensor is known to be no parameter."""
        ...


class SameNames:
    """The names of models whose checkpoints have their own: transformers' models, any other module.

    buffers: names of tensors in their checkpoints that are no parameters.
    """

    def __init__(self, buffers: Iterable[str] = ()) -> None:
        self._buffers = frozenset(buffers)

    def to_checkpoint(self, ours: str) -> tuple[str, Rename]:
        return ours, Rename(ours, ours)

    def ignores(self, checkpoint: str) -> bool:
        return checkpoint in self._buffers


def state_name(key: str, source: str) -> str:
    """Return the name of a state's tensor: its key, and the checkpoint's name of the weight."""
    return f"{key}/{source}"


def file_order(names: StateNames, config: Any, ours: str, shape: torch.Size) -> tuple[str, Rows]:
    """Return a parameter's name in checkpoints, and the ranges of our rows that make up the tensor there."""
    source, entry = names.to_checkpoint(ours)
    return source, inverse(entry.rows(config, rows_of(shape)))


class StateTensors:
    """The tensors of an optimizer's state in a checkpoint. Opening them reads headers only.

    Args:
        index: the JSON file that names the others.
        names: the model's.
        config: the model's config, for entries whose row order depends on it.

    Raises:
        CheckpointError: a file is missing or no safetensors file.
    """

    def __init__(self, index: Path, names: StateNames, config: Any) -> None:
        self._reader: Reader = open_indexed(index)
        self._names, self._config = names, config
        self._keys: dict[str, list[str]] = {}
        self._fixed: dict[str, list[str]] = {}
        for name in self._reader.tensors:
            key, _, source = name.partition("/")
            kept = self._fixed if key.startswith(FIXED) else self._keys
            kept.setdefault(source, []).append(key.removeprefix(FIXED))

    def keys(self, name: str) -> list[str]:
        """Return the keys of a parameter's states that have one element for each of its own."""
        return self._keys.get(self._names.to_checkpoint(name)[0], [])

    def dtype(self, name: str, key: str) -> torch.dtype:
        """Return the dtype of such a state."""
        return _DTYPES[self._info(name, key).dtype]

    def fill(self, key: str) -> Fill:
        """Return what gives elements of these states, in the order of our rows, in their own dtype.

        It raises CheckpointError where a state has another shape than its parameter.
        """

        def read(name: str, shape: torch.Size, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
            info = self._info(name, key)
            if info.shape != tuple(shape):
                raise CheckpointError(
                    f"the optimizer's state {key!r} of {name} in {info.file} has shape {info.shape}, and the model's "
                    f"parameter has {tuple(shape)}. Check that the checkpoint belongs to this model."
                )
            source, entry = self._names.to_checkpoint(name)
            order = entry.rows(self._config, rows_of(shape))
            dtype = _DTYPES[info.dtype]
            return elements(self._reader, state_name(key, source), order, shape, start, stop, columns, dtype)

        return read

    def fixed(self, name: str) -> Mapping[str, Tensor]:
        """Return a parameter's states of another form."""
        source, _ = self._names.to_checkpoint(name)
        found = {}
        for key in self._fixed.get(source, []):
            tensor = state_name(FIXED + key, source)
            rows = self._reader.tensors[tensor].shape[0]
            found[key] = self._reader.rows(tensor, [(0, rows)]).clone()
        return found

    def _info(self, name: str, key: str) -> TensorInfo:
        return self._reader.tensors[state_name(key, self._names.to_checkpoint(name)[0])]
