"""DoRA's magnitudes in every layout (Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation").

W' = m · (W + s·B·A) / ‖W + s·B·A‖, row by row; as in section 4.3 the gradient takes the norm for a constant.
"""

import torch
from torch import Tensor, nn

from collie.adapters._parts import columns_of
from collie.parallel import (
    ColumnLinear,
    Cut,
    MixedColumnLinear,
    RowLinear,
    Topology,
    cut_of,
    mark,
    mark_partial,
    sum_backward,
    total,
)


class Magnitude(nn.Module):
    """m of the outputs that a rank computes; PEFT's layer calls it as it calls its own.

    Args:
        name: of the whole vector in the whole model.
        outputs: of the whole map.
        part: what this rank has of the map, or the map.
        topology: this rank's place.
    """

    def __init__(self, name: str, outputs: int, part: nn.Module, topology: Topology) -> None:
        super().__init__()
        self._group = topology.tp_group if isinstance(part, RowLinear) else None  # which has the other columns of W
        self._columns = columns_of(part) if isinstance(part, ColumnLinear | MixedColumnLinear) else ()
        if not self._columns:
            self.weight = nn.Parameter(torch.empty(outputs, device="meta"))
            if isinstance(part, RowLinear) and part.stream.sequence:
                mark_partial(self.weight)
        for attribute, column in zip(("weight", "shared"), self._columns, strict=False):
            of_weight = cut_of(column.get_parameter("weight"))
            assert of_weight is not None, "a part's weight is cut"
            cut = Cut(name, torch.Size((outputs,)), 0, of_weight.held, of_weight.length, of_weight.copies)
            self.register_parameter(attribute, mark(nn.Parameter(torch.empty(cut.length, device="meta")), cut))

    def forward(
        self,
        x: Tensor,
        *,
        lora_A: nn.Module,
        lora_B: nn.Module,
        scaling: float,
        base_layer: nn.Module,
        base_result: Tensor | None = None,
        adapter_name: str = "",
    ) -> Tensor:
        """Return what is to be added to base_layer's output, without what it has been given of x.

        `base_result`: base_layer(x), where it is known. Reads weights of other modules, which under ZeRO-3 must be
        gathered together with these.
        """
        base = base_layer(x) if base_result is None else base_result
        bias = joined([map_.bias for map_ in maps_of(base_layer)])
        if bias is not None:
            base = base - bias
        norm = row_norms(base_layer, lora_A, lora_B, scaling, self._group)
        relative = self._own() / norm.to(x.dtype)
        return (relative - 1) * base + relative * lora_B(lora_A(x)) * scaling

    def _own(self) -> Tensor:
        """m; the gradient of what several ranks have is summed over these."""
        if not self._columns:
            return self.weight
        vectors = zip(self.parameters(), self._columns, strict=True)
        return torch.cat([sum_backward(vector, column.copies_group) for vector, column in vectors])


@torch.no_grad()
def row_norms(base: nn.Module, lora_a: nn.Module, lora_b: nn.Module, scaling: float, group: object) -> Tensor:
    """Return ‖W + s·B·A‖ of each row that this rank has; `group` are the ranks that have its other columns."""
    down = lora_a.get_parameter("weight")
    norms = []
    for map_, up in zip(maps_of(base), maps_of(lora_b), strict=True):
        norms.append(adapted_norms(map_.weight, up.weight @ down * scaling, group))
    return torch.cat(norms)


def adapted_norms(weight: Tensor, delta: Tensor, group: object) -> Tensor:
    """Return the norms of the rows of weight + delta, in the weight's dtype."""
    squares = torch.linalg.vector_norm(weight + delta, dim=1, dtype=torch.float32).square()
    return total(squares, group).sqrt().to(weight.dtype)  # type: ignore[arg-type]


def maps_of(module: nn.Module) -> list[nn.Linear]:
    """Return the linear maps that a module is, or consists of."""
    maps = list(columns_of(module)) if isinstance(module, MixedColumnLinear) else [module]
    return [map_ for map_ in maps if isinstance(map_, nn.Linear)]


def joined(vectors: list[Tensor | None]) -> Tensor | None:
    """Return biases one after the other, or None where there are none."""
    known = [vector for vector in vectors if vector is not None]
    return torch.cat(known) if known else None
