"""The training loop."""

from collie.controller.trainer._trainer import Trainer

__all__ = ["Trainer"]
