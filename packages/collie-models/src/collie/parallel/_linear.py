"""Linear maps of which each tensor-parallel rank holds a part."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collie.parallel._collectives import linear_of_copies
from collie.parallel._cut import Cut, Ranges, even, mark
from collie.parallel._stream import Stream
from collie.parallel._topology import Topology


class ColumnLinear(nn.Linear):
    """Every rank computes from all of the input the outputs whose rows of the weight it holds.

    Args:
        name: of the linear map in the whole model.
        whole: that map, on `meta`.
        held: for each rank the rows that it holds.
        copies: how many neighbouring ranks hold the same rows.
        stream: where the input comes from; None where something before has entered it, once for several maps.
        topology: this rank's place.
    """

    def __init__(
        self,
        name: str,
        whole: nn.Linear,
        held: tuple[Ranges, ...],
        *,
        copies: int = 1,
        stream: Stream | None,
        topology: Topology,
    ) -> None:
        rows = sum(stop - start for start, stop in held[0])
        super().__init__(whole.in_features, rows, whole.bias is not None, device="meta", dtype=whole.weight.dtype)
        for attribute, parameter in whole.named_parameters():
            cut = Cut(f"{name}.{attribute}", parameter.shape, 0, held, rows, copies)
            mark(self.get_parameter(attribute), cut)
        self.copies = copies
        self.stream = stream
        self.copies_group = topology.tp_subgroup(copies)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stream.enter(x) if self.stream is not None else x
        if self.copies > 1:
            return linear_of_copies(x, self.weight, self.bias, self.copies_group)
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, copies={self.copies}"


class MixedColumnLinear(nn.Module):
    """A fused map of which some rows are held by one rank and others by several: queries, then shared keys and values.

    They are parameters of their own, since a norm counts those once and these on one of their ranks.
    """

    def __init__(self, own: ColumnLinear, shared: ColumnLinear) -> None:
        super().__init__()
        self.own = own
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.own(x), self.shared(x)), -1)


class RowLinear(nn.Linear):
    """Each rank has some of the inputs and those columns of the weight; the products are summed, then comes the bias.

    Args:
        name: of the linear map in the whole model.
        whole: that map, on `meta`; the ranks divide its inputs.
        stream: where the output goes.
        topology: this rank's place.
    """

    def __init__(self, name: str, whole: nn.Linear, stream: Stream, topology: Topology) -> None:
        columns = whole.in_features // topology.tp_size
        super().__init__(columns, whole.out_features, whole.bias is not None, device="meta", dtype=whole.weight.dtype)
        held = even(whole.in_features, topology.tp_size)
        mark(self.get_parameter("weight"), Cut(f"{name}.weight", whole.weight.shape, 1, held, columns))
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        summed = self.stream.leave(F.linear(x, self.weight))
        return summed if self.bias is None else summed + self.bias
