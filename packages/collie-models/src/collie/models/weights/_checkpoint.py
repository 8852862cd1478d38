"""A checkpoint bound to a model: checked from its headers alone, then read slice by slice."""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from collie.interfaces import CheckpointError
from collie.models.weights._names import Rows, pick
from collie.models.weights._reader import Reader
from collie.parallel import Fill, active_topology

if TYPE_CHECKING:
    from collie.models.weights._state import StateNames

_FLOATS = ("F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")


class Checkpoint:
    """The tensors of a checkpoint for each of a model's parameters.

    Args:
        reader: the opened checkpoint.
        names: the family's table.
        config: the model's config, for entries whose row order depends on it.
        shapes: our parameters and their shapes.
        tied: further names of those parameters (a tied head): a checkpoint may hold them or not.

    Raises:
        CheckpointError: a tensor is missing or of another shape. Nothing was read or allocated.
    """

    def __init__(
        self,
        reader: Reader,
        names: "StateNames",
        config: Any,
        shapes: Mapping[str, torch.Size],
        tied: Iterable[str] = (),
    ) -> None:
        self.reader = reader
        self._config = config
        self._sources = {ours: names.to_checkpoint(ours) for ours in shapes}
        self._check_missing(shapes)
        self._check_shapes(shapes)
        self._warn_of_unused(names, tied)

    def fill(self, dtype: torch.dtype) -> Fill:
        """Return what `collie.parallel.materialise` asks: elements [start, stop) of one of our parameters, in `dtype`.

        A call reads the rows (of the asked columns) that these elements lie in, and holds at most one copy of them.
        """

        def read(name: str, shape: torch.Size, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
            source, entry = self._sources[name]
            return elements(
                self.reader, source, entry.rows(self._config, rows_of(shape)), shape, start, stop, columns, dtype
            )

        return read

    def _check_missing(self, shapes: Mapping[str, torch.Size]) -> None:
        missing = [(source, ours) for ours, (source, _) in self._sources.items() if source not in self.reader.tensors]
        if missing:
            source, ours = missing[0]
            more = f", nor {len(missing) - 1} others that the config asks for" if len(missing) > 1 else ""
            raise CheckpointError(
                f"{self.reader.folder} has no tensor {source!r} (our {ours}, shape {tuple(shapes[ours])}){more}. "
                f"Check that the weights belong to its config.json."
            )

    def _check_shapes(self, shapes: Mapping[str, torch.Size]) -> None:
        for ours, (source, _) in self._sources.items():
            info = self.reader.tensors[source]
            if info.dtype not in _FLOATS:
                raise CheckpointError(
                    f"Tensor {source!r} in {info.file} has dtype {info.dtype}: it is quantized, or no weight. "
                    f"Give a checkpoint in bfloat16, float16 or float32."
                )
            if info.shape != tuple(shapes[ours]):
                raise CheckpointError(
                    f"Tensor {source!r} in {info.file} has shape {info.shape}, but the config asks for "
                    f"{tuple(shapes[ours])} (our {ours}). Check that the weights belong to its config.json."
                )

    def _warn_of_unused(self, names: "StateNames", tied: Iterable[str]) -> None:
        known = {source for source, _ in self._sources.values()} | {names.to_checkpoint(ours)[0] for ours in tied}
        if active_topology().rank != 0:
            return  # one rank says it for all
        unused = sorted(name for name in self.reader.tensors if name not in known and not names.ignores(name))
        if unused:
            warnings.warn(
                f"{self.reader.folder} holds {len(unused)} tensors that the model does not use: "
                f"{', '.join(unused[:3])}{', …' if len(unused) > 3 else ''}.",
                stacklevel=2,
            )


def rows_of(shape: torch.Size) -> int:
    """The rows of a tensor; a single value is one."""
    return shape[0] if shape else 1


def elements(
    reader: Reader,
    source: str,
    order: Rows,
    shape: torch.Size,
    start: int,
    stop: int,
    columns: tuple[int, int] | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return elements [start, stop) of our tensor, flat, from the rows of the checkpoint's that they lie in.

    Args:
        reader: the opened checkpoint.
        source: the tensor's name there.
        order: the checkpoint's row ranges that make up our tensor.
        shape: of the whole tensor.
        start, stop: of the whole, flattened; or where columns are given, of these alone, flattened.
        columns: a range of the second dimension.
        dtype: of the result.
    """
    width = math.prod(shape[1:]) if columns is None else columns[1] - columns[0]
    first, last = start // width, -(-stop // width)
    flat = reader.rows(source, pick(order, first, last), columns, dtype=dtype).flatten()
    return flat[start - first * width : stop - first * width]
