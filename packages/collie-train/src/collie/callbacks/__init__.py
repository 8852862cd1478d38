"""Hooks into the Trainer's events."""

from collie.callbacks._callback import Callback
from collie.callbacks._manager import CallbackManager, prepare_callback

__all__ = ["Callback", "CallbackManager", "prepare_callback"]
