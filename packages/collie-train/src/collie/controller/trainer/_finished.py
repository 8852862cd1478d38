"""What is known of a step once it is made: for monitors, for the run's events, for whoever asked something."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from collie.controller.trainer._requests import Requests
from collie.data import MicroBatch
from collie.events import Step as StepEvent
from collie.utils.monitor import memory_in_use


@dataclass(frozen=True)
class FinishedStep:
    """One optimizer update, and what was asked of the run until it began."""

    global_step: int
    epoch: int
    loss: Tensor  # 0-d, equal on every rank
    loss_value: float  # the same on the host: fetched once, since a GPU waits for it
    lr: float
    grad_norm: float | None
    tokens: int  # of this rank's rows
    rows: int  # of the global batch
    seconds: float
    requests: Requests

    def as_monitor_item(self, world_size: int) -> dict[str, Any]:
        """Return what monitors are told."""
        return {
            "global_step": self.global_step,
            "epoch": self.epoch,
            "loss": self.loss_value,
            "lr": self.lr,
            "tokens": self.tokens,
            "batch_size": self.rows,
            "world_size": world_size,
        }

    def as_event(self, total_steps: int) -> StepEvent:
        """Return what is written into the run folder."""
        return StepEvent(
            loss=self.loss_value,
            lr=self.lr,
            tokens=self.tokens,
            seconds=self.seconds,
            epoch=self.epoch,
            total=total_steps,
            grad_norm=self.grad_norm,
            memory=memory_in_use(),
        )


def count_tokens(micro_batches: list[MicroBatch]) -> int:
    """Input tokens of a step's rows on this rank that are not padding; fillers count for nothing."""
    return sum(_tokens_of(m.batch) for m in micro_batches if m.rows)


def _tokens_of(batch: dict[str, Any]) -> int:
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return int(batch["input_ids"].numel()) if "input_ids" in batch else 0
