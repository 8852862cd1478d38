"""What the metrics of texts share: they keep something of every row, and see the rows of all ranks in the end."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist

from collie.interfaces import DataError
from collie.metrics._base import BaseMetric
from collie.metrics._text import texts_and_references


class TextMetric(BaseMetric):
    """Compares `pred` with `target`, row by row: texts, or token ids that the evaluator's tokenizer decodes.

    A row's target is one reference or a list of them, and rows may have different numbers.

    Args:
        gather_result: with True every rank reads the rows of all ranks; with False each reads its own, and what it
            kept of them is exchanged once, in `get_metric`. The value is the same.
    """

    def __init__(self, gather_result: bool = True) -> None:
        super().__init__(gather_result)
        self.reset()

    def reset(self) -> None:
        self._kept: list[Any] = []

    def update(self, result: dict[str, Any]) -> None:
        pairs = texts_and_references(type(self).__name__, result, self.tokenizer)
        self._kept += [self.keep(text, references) for text, references in pairs]

    @abstractmethod
    def keep(self, text: str, references: list[str]) -> Any:
        """What `get_metric` needs of one row; it must be picklable."""

    def kept(self) -> list[Any]:
        """What was kept of all rows of all ranks.

        Raises:
            DataError: no rank had a row.
        """
        group = self.topology.dp_group
        kept = self._kept
        if group is not None and not self.gather_result:
            everyone: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(everyone, kept, group=group)
            kept = [item for part in everyone for item in part]
        if not kept:
            raise DataError(f"{type(self).__name__} has seen 0 rows: give the evaluator a dataset with rows.")
        return kept


def mean(values: Iterable[float]) -> float:
    """The mean, exactly rounded: the order of rows, and so of ranks, does not show."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
