"""Hooks into the Trainer's events, and those that save while training."""

from collie.callbacks._callback import Callback
from collie.callbacks._checkpoint_callback import CheckpointCallback
from collie.callbacks._load_best_model_callback import LoadBestModelCallback
from collie.callbacks._manager import CallbackManager, prepare_callback
from collie.callbacks._results_monitor import ResultsMonitor

__all__ = [
    "Callback",
    "CallbackManager",
    "CheckpointCallback",
    "LoadBestModelCallback",
    "ResultsMonitor",
    "prepare_callback",
]
