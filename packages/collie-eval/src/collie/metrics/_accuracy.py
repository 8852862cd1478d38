"""Accuracy."""

from typing import Any

import torch
import torch.distributed as dist

from collie.interfaces import DataError
from collie.metrics._base import BaseMetric
from collie.metrics._labels import label_pairs


class AccuracyMetric(BaseMetric):
    """How many labels were predicted rightly, over all rows of all ranks.

    Reads `pred` and `target`: labels as numbers or texts, or scores of the classes [..., C] as pred; a target of -100
    does not count. Where a row's target is a list of texts, any of them is right.
    """

    def __init__(self, gather_result: bool = False) -> None:
        super().__init__(gather_result)
        self.reset()

    def reset(self) -> None:
        self._correct = self._total = 0

    def update(self, result: dict[str, Any]) -> None:
        pairs = label_pairs("AccuracyMetric", result)
        self._correct += sum(_right(pred, target) for pred, target in pairs)
        self._total += len(pairs)

    def get_metric(self) -> dict[str, float]:
        """{"acc": correct / total, "correct", "total"}, equal on every rank.

        Raises:
            DataError: no rank had a label that counts.
        """
        counts = torch.tensor([self._correct, self._total], device=self.topology.device)
        if self.topology.dp_group is not None and not self.gather_result:
            dist.all_reduce(counts, group=self.topology.dp_group)
        correct, total = counts.tolist()
        if total == 0:
            raise DataError(
                "AccuracyMetric has seen 0 targets (or each is -100): give the evaluator rows with targets."
            )
        return {"acc": correct / total, "correct": correct, "total": total}


def _right(pred: Any, target: Any) -> bool:
    if isinstance(target, list | tuple) and not isinstance(pred, list | tuple):
        return pred in target
    return bool(pred == target)
