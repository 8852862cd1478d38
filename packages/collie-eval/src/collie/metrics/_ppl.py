"""Perplexity."""

import math
from typing import Any

import torch
import torch.distributed as dist

from collie.interfaces import DataError
from collie.metrics._base import BaseMetric
from collie.metrics._text import need


class PPLMetric(BaseMetric):
    """Perplexity: exp of the mean negative log-likelihood, in nats, of all target tokens of all ranks.

    Every token weighs the same, whatever batch or rank it was in. Reads `loss_sum` (summed over target tokens) and
    `tokens` (their number) from each result. A mean too large for exp gives inf.
    """

    def __init__(self, gather_result: bool = False) -> None:
        super().__init__(gather_result)
        self.reset()

    def reset(self) -> None:
        self._loss_sum = 0.0
        self._tokens = 0

    def update(self, result: dict[str, Any]) -> None:
        need("PPLMetric", result, "loss_sum", "tokens", use="use EvaluatorForPerplexity")
        self._loss_sum += _total(result["loss_sum"])
        self._tokens += int(_total(result["tokens"]))

    def get_metric(self) -> float:
        """The perplexity, equal on every rank.

        Raises:
            DataError: no rank had a target token.
        """
        loss_sum, tokens = self._reduced()
        if tokens == 0:
            raise DataError(
                "PPLMetric: the evaluation had 0 target tokens (every label is -100): "
                "give the evaluator rows with labels, or with input and output."
            )
        try:
            return math.exp(loss_sum / tokens)
        except OverflowError:
            return math.inf

    def _reduced(self) -> tuple[float, int]:
        group = self.topology.dp_group
        if group is None or self.gather_result:  # gathered rows are everyone's already
            return self._loss_sum, self._tokens
        totals = torch.tensor([self._loss_sum, float(self._tokens)], dtype=torch.float64, device=self.topology.device)
        dist.all_reduce(totals, group=group)
        return totals[0].item(), int(totals[1].item())


def _total(value: Any) -> float:
    """The sum of a number, a tensor or a list of either, in double precision."""
    if isinstance(value, torch.Tensor):
        return float(value.detach().double().sum())
    if isinstance(value, list | tuple):
        return math.fsum(_total(item) for item in value)
    return float(value)
