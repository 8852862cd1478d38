"""Ending a training with the best of its models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from collie.callbacks._callback import Callback
from collie.callbacks._results_monitor import Monitor, ResultsMonitor
from collie.callbacks._saver import Saver
from collie.interfaces import ConfigError

if TYPE_CHECKING:
    from collie.controller.trainer import Trainer

_NAME = "best"


class LoadBestModelCallback(Callback):
    """Saves the model whenever an evaluation in training is better than all before, and loads it when training ends.

    It is saved in `folder`/best. A training that is stopped before its end, which may be resumed, is left as it is.
    Of a model with an adapter, the adapter is saved and loaded.

    Args:
        folder: where; a path, or a URL that fsspec knows.
        process_exclusion: makes no difference: saving gathers one parameter at a time.
        monitor: which of the evaluation's results to go by: see ResultsMonitor.
        larger_better: whether more of it is better.
        delete_after_train: delete `folder`/best once it is loaded.
        kwargs: passed on to Trainer.save_model or save_peft.

    Raises:
        ConfigError: there is no monitor.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        process_exclusion: bool = False,
        monitor: Monitor | None = None,
        larger_better: bool = True,
        delete_after_train: bool = True,
        **kwargs: Any,
    ) -> None:
        if monitor is None:
            raise ConfigError("LoadBestModelCallback needs monitor=…: the name of one of the evaluation's results.")
        self.delete_after_train = delete_after_train
        self._monitor = ResultsMonitor(monitor, larger_better)
        self._saver = Saver(folder, model_only=True, peft_only=True, arguments=kwargs)
        self._best: float | None = None
        self._training = False

    @property
    def best_value(self) -> float | None:
        """The best value so far, of the model that is saved; None before the first."""
        return self._best

    def on_after_trainer_initialized(self, trainer: Trainer) -> None:
        """Raises ConfigError: no evaluator gives results."""
        if not trainer.evaluators:
            raise ConfigError(
                "LoadBestModelCallback goes by an evaluation's results, and the Trainer has no evaluators."
            )

    def on_train_begin(self, trainer: Trainer) -> None:
        """From here on evaluations count."""
        self._training = True

    def on_evaluate_end(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """Save where the results are the best so far, while training."""
        if not self._training:
            return
        value = self._monitor.value(results)
        if value is None or (self._best is not None and not self._monitor.better(value, self._best)):
            return
        if self._saver.save(trainer, _NAME):
            self._best = value

    def on_train_end(self, trainer: Trainer) -> None:
        """Load the best, unless the training was stopped."""
        self._training = False
        if self._best is None or trainer.stopped:
            return
        self._saver.load(trainer, _NAME)
        if self.delete_after_train:
            self._saver.delete(trainer, _NAME)
            self._best = None

    def on_save_checkpoint(self, trainer: Trainer) -> dict[str, Any]:
        """How good the saved model is."""
        return {"best": self._best}

    def on_load_checkpoint(self, trainer: Trainer, states: dict[str, Any] | None) -> None:
        """Go on from there."""
        if states is not None:
            self._best = states["best"]
