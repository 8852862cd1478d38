"""LoRA around the parts that tensor-parallel ranks hold: each rank has of A and B what its part of the map needs.

Around a column-parallel map every rank computes h = A·x, r numbers a token, and from h the outputs of its own rows of
B. Where the map enters its input from the stream, B enters h instead, and x itself is not exchanged again. Around a
row-parallel map each rank has the columns of A for its inputs, h is summed, and B is whole.
"""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from collie.parallel import (
    ColumnLinear,
    MixedColumnLinear,
    Ranges,
    RowLinear,
    Stream,
    Topology,
    apart,
    cut_of,
    mark_partial,
)


class PartDropout(nn.Dropout):
    """Dropout of activations of which each tensor-parallel rank holds others: it drops other ones on each."""

    def __init__(self, p: float, topology: Topology) -> None:
        super().__init__(p)
        self._topology = topology

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        with apart(self._topology):
            return F.dropout(x, self.p, True)


def divide(layer: nn.Module, adapter: str, name: str, part: nn.Module, topology: Topology) -> None:
    """Leave of a LoRA layer on `meta` what a rank needs for its part of a linear map, in place.

    Args:
        layer: PEFT's, around an empty map of the whole's sizes.
        adapter: the adapter's name.
        name: of the map in the whole model.
        part: what this rank has in the map's place; anything but a part of a map leaves `layer` as it is.
        topology: this rank's place.
    """
    if isinstance(part, RowLinear):
        _around_rows(layer, adapter, name, part, topology)
    elif isinstance(part, ColumnLinear | MixedColumnLinear):
        _around_columns(layer, adapter, name, columns_of(part), topology)


def columns_of(part: ColumnLinear | MixedColumnLinear) -> Sequence[ColumnLinear]:
    """Return the maps that a column-parallel part consists of, in the order of their outputs."""
    return (part,) if isinstance(part, ColumnLinear) else (part.own, part.shared)


def _around_rows(layer: nn.Module, adapter: str, name: str, part: RowLinear, topology: Topology) -> None:
    first, second, dropout = _inner(layer, adapter)
    first[adapter] = RowLinear(f"{name}.lora_A.{adapter}", _linear(first[adapter]), part.stream, topology)
    if part.stream.sequence:  # each rank applies it to its own positions
        _mark_all_partial(second[adapter])
    _draw_apart(dropout, adapter, topology)


def _around_columns(
    layer: nn.Module, adapter: str, name: str, parts: Sequence[ColumnLinear], topology: Topology
) -> None:
    first, second, dropout = _inner(layer, adapter)
    stream: Stream | None = parts[0].stream
    make = partial(ColumnLinear, f"{name}.lora_B.{adapter}", _linear(second[adapter]), stream=stream, topology=topology)
    made = [make(_held(part), copies=part.copies) for part in parts]
    second[adapter] = made[0] if len(made) == 1 else MixedColumnLinear(*made)
    if stream is None or stream.sequence:  # the gradient of h is of this rank's outputs, or positions, alone
        _mark_all_partial(first[adapter])
    if stream is not None and stream.sequence:
        _draw_apart(dropout, adapter, topology)


def _held(part: ColumnLinear) -> tuple[Ranges, ...]:
    cut = cut_of(part.get_parameter("weight"))
    assert cut is not None, "a part's weight is cut"
    return cut.held


def _inner(layer: nn.Module, adapter: str) -> tuple[nn.ModuleDict, nn.ModuleDict, nn.ModuleDict]:
    """Return PEFT's A, B and dropout modules, by adapter."""
    parts = [layer.get_submodule(name) for name in ("lora_A", "lora_B", "lora_dropout")]
    first, second, dropout = (part for part in parts if isinstance(part, nn.ModuleDict))
    return first, second, dropout


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module


def _draw_apart(dropout: nn.ModuleDict, adapter: str, topology: Topology) -> None:
    if isinstance(whole := dropout[adapter], nn.Dropout):
        dropout[adapter] = PartDropout(whole.p, topology)


def _mark_all_partial(module: nn.Module) -> None:
    for parameter in module.parameters():
        mark_partial(parameter)
