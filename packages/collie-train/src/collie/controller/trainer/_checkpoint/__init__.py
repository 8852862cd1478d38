"""Checkpoints with training state."""

from collie.controller.trainer._checkpoint._checkpoints import Checkpoints
from collie.controller.trainer._checkpoint._run import Position, Run

__all__ = ["Checkpoints", "Position", "Run"]
