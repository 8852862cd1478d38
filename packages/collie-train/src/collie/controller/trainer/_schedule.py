"""Learning rate schedulers, of torch, transformers or DeepSpeed: one a run, stepped once an update."""

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from collie.config import CollieConfig
from collie.controller.trainer._steps import StepResult
from collie.interfaces import ConfigError


def make_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer | None, config: CollieConfig) -> Any:
    """Return a scheduler, or what a callable makes of the optimizer; None where none was given.

    Raises:
        ConfigError: there is no optimizer, or ds_config has a scheduler, too, which DeepSpeed steps.
    """
    if scheduler is None:
        return None
    if config.deepspeed.get("scheduler"):
        raise ConfigError("lr_scheduler and ds_config['scheduler'] would both set the learning rate. Give one of them.")
    if hasattr(scheduler, "step"):
        return scheduler
    if optimizer is None:
        raise ConfigError("lr_scheduler was given without an optimizer.")
    return scheduler(optimizer)


def advance(scheduler: Any, result: StepResult) -> None:
    """Step a scheduler once for an update; one that was skipped does not count.

    A scheduler that watches a value gets the step's loss, which is equal on every rank.
    """
    if scheduler is None or not result.applied:
        return
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(result.loss.item())
    else:
        scheduler.step()
