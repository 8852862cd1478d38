"""Monitors of the training itself: what the Trainer and the evaluators put into the item."""

from __future__ import annotations

from typing import Any, ClassVar

from collie.utils.monitor._base import BaseMonitor, Item


class StepTimeMonitor(BaseMonitor):
    """Wall time of a step, in seconds."""

    units: ClassVar[dict[str, str]] = {"step_time": "s"}

    def measure(self, item: Item) -> dict[str, float]:
        """Return {"step_time": seconds}."""
        return {"step_time": self.seconds}


class TGSMonitor(BaseMonitor):
    """Tokens a GPU and second. The tp_size × pp_size ranks of a replica share its tokens."""

    units: ClassVar[dict[str, str]] = {"tgs": "tokens/s"}

    def measure(self, item: Item) -> dict[str, float]:
        """Return {"tgs": tokens of this replica / (tp_size × pp_size) / seconds}."""
        if "tokens" not in item or self.seconds <= 0:
            return {}
        return {"tgs": item["tokens"] / (self.config.tp_size * self.config.pp_size) / self.seconds}


class LossMonitor(BaseMonitor):
    """Loss of a step: the mean over the target tokens of the global batch."""

    def measure(self, item: Item) -> dict[str, float]:
        """Return {"loss": nats a token}."""
        return {"loss": item["loss"]} if item.get("loss") is not None else {}


class LRMonitor(BaseMonitor):
    """Learning rate of a step."""

    def measure(self, item: Item) -> dict[str, float]:
        """Return {"lr": learning rate}."""
        return {"lr": item["lr"]} if item.get("lr") is not None else {}


class EvalMonitor(BaseMonitor):
    """Results of an evaluation; those that are numbers."""

    def measure(self, item: Item) -> dict[str, float]:
        """Return each metric under "eval/NAME", or "EVALUATOR/NAME" where the evaluator has a name."""
        prefix = item.get("eval_name") or "eval"
        results = item.get("eval_result") or {}
        numbers = {f"{prefix}/{name}": _number(value) for name, value in results.items()}
        return {name: value for name, value in numbers.items() if value is not None}


def _number(value: Any) -> float | None:
    """Return a metric's result as a number (also a tensor of one element); None if it is something else."""
    if isinstance(value, (str, bytes, bool)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
        return None
