"""Which layers of a model belong to which pipeline stage, and which stages to which rank."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from collie.config import CollieConfig
from collie.interfaces import ParallelSizeError

_STAGES_A_RANK = {"1f1b": 1, "interleaved": 2}  # by schedule


@dataclass(frozen=True)
class Stages:
    """A model's layers, dealt to stages in their order; stage s belongs to pipeline rank s modulo `ranks`.

    layers: for each stage the names of its layers. The first has the embedding besides, the last norm and head.
    ranks: pipeline ranks.
    rank: this one.
    """

    layers: tuple[tuple[str, ...], ...]
    ranks: int
    rank: int

    @property
    def count(self) -> int:
        return len(self.layers)

    @property
    def own(self) -> range:
        """This rank's stages."""
        return range(self.rank, self.count, self.ranks)

    @property
    def has_first(self) -> bool:
        return self.rank == 0

    @property
    def has_last(self) -> bool:
        return self.rank == self.ranks - 1

    def rank_of(self, stage: int) -> int:
        """The pipeline rank that has a stage."""
        return stage % self.ranks


def deal(
    layers: nn.ModuleDict, before: Sequence[nn.Module], after: Sequence[nn.Module], config: CollieConfig, rank: int
) -> Stages:
    """Deal layers to stages by config.pp_partition_method, so that the heaviest stage is as light as can be.

    "uniform" counts layers; "parameters" counts elements, with those of what stands before and after the layers;
    "type:REGEX" counts the layers whose class has a name in which the expression is found, in any case.

    Args:
        layers: keyed by their numbers, perhaps on `meta`.
        before: what the first stage holds besides its layers.
        after: what the last one does.
        config: pp_size, pp_schedule, pp_partition_method.
        rank: this pipeline rank.

    Raises:
        ParallelSizeError: there are fewer layers than stages, or no layer is of the type.
    """
    stages = config.pp_size * _STAGES_A_RANK[config.pp_schedule]
    if len(layers) < stages:
        raise ParallelSizeError(
            f"pp_size={config.pp_size} with pp_schedule={config.pp_schedule!r} makes {stages} stages, and the model "
            f"has {len(layers)} layers. Set pp_size to {max(1, len(layers) * config.pp_size // stages)} or less."
        )
    weights = _weights(layers, config.pp_partition_method)
    if config.pp_partition_method == "parameters":
        weights[0] += sum(map(_elements, before))
        weights[-1] += sum(map(_elements, after))
    names = list(layers)
    ends = [0, *balanced(weights, stages)]
    dealt = tuple(tuple(names[start:stop]) for start, stop in pairwise(ends))
    return Stages(dealt, config.pp_size, rank)


def balanced(weights: Sequence[int], parts: int) -> list[int]:
    """Return where each of `parts` runs of consecutive items ends, so that the heaviest run is as light as can be.

    Every run has an item. Of equally good ways it is the one that fills earlier runs first.
    """
    total = [0]
    for weight in weights:
        total.append(total[-1] + weight)
    low, high = max(weights), total[-1]
    while low < high:  # the least limit that `parts` runs can keep to
        middle = (low + high) // 2
        low, high = (low, middle) if _runs(total, middle) <= parts else (middle + 1, high)
    ends, start = [], 0
    for part in range(parts):
        most = len(weights) - (parts - part - 1)  # leave an item for each run to come
        end = start + 1
        while end < most and total[end + 1] - total[start] <= low:
            end += 1
        ends.append(end)
        start = end
    return ends


def _runs(total: Sequence[int], limit: int) -> int:
    """How many runs there are when each is filled up to `limit`; no item is heavier."""
    runs, start = 1, 0
    for end in range(1, len(total)):
        if total[end] - total[start] > limit:
            runs, start = runs + 1, end - 1
    return runs


def _weights(layers: nn.ModuleDict, method: str) -> list[int]:
    if method == "uniform":
        return [1] * len(layers)
    if method == "parameters":
        return [_elements(layer) for layer in layers.values()]
    expression = method.removeprefix("type:")
    found = [int(re.search(expression, type(layer).__name__, re.IGNORECASE) is not None) for layer in layers.values()]
    if not any(found):
        kinds = sorted({type(layer).__name__ for layer in layers.values()})
        raise ParallelSizeError(
            f"pp_partition_method={method!r} matches no layer: they are of type {', '.join(kinds)}. "
            f"Use one of these, 'parameters' or 'uniform'."
        )
    return found


def _elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
