"""Saving while training: every so often, the best, the last."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from collie.callbacks._callback import Callback
from collie.callbacks._results_monitor import Monitor, ResultsMonitor
from collie.callbacks._saver import Saver
from collie.interfaces import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from collie.controller.trainer import Trainer


class CheckpointCallback(Callback):
    """Saves while training, into folders below `folder`:

        epoch_{E}                          after every_n_epochs: E epochs are done
        epoch_{e}-batch_{B}                after every_n_batches: B steps of epoch e (from 0) are done
        epoch_{e}-batch_{B}-{name}_{value} after an evaluation that is among the topk best
        last                               after each epoch, in place of the one before

    A save that the file system refuses (a full disk) is an alert in the run's events, and training goes on. Folders are
    deleted only where this callback has written them, and after the one that replaces them is there. What it keeps
    count of goes into checkpoints, so that a resumed run goes on counting.

    Args:
        folder: where; a path, or a URL that fsspec knows. None: the current folder.
        every_n_epochs: save after every so many epochs; None or 0 never.
        every_n_batches: save after every so many steps of the whole training, in any epoch; None or 0 never.
        process_exclusion: makes no difference: saving gathers one parameter at a time.
        model_only: save the weights alone, as a Hugging Face folder; False saves all that training resumes from.
        peft_only: with model_only, save of a model with an adapter the adapter alone.
        monitor: by which of the evaluation's results the topk are chosen: see ResultsMonitor.
        larger_better: whether more of it is better.
        topk: keep so many with the best values, of equal ones the first; -1 all of them.
        last: keep the last epoch's.
        max: keep at most so many of those that every_n_epochs and every_n_batches save; None or 0 all of them.
        kwargs: passed on to Trainer.save_model, save_peft or save_checkpoint.

    Raises:
        ConfigError: a number that cannot be; topk without monitor or monitor without topk; nothing to save at all.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        every_n_epochs: int | None = None,
        every_n_batches: int | None = None,
        process_exclusion: bool = False,
        model_only: bool = True,
        peft_only: bool = True,
        monitor: Monitor | None = None,
        larger_better: bool = True,
        topk: int = 0,
        last: bool = False,
        max: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.every_n_epochs = _at_least(0, "every_n_epochs", every_n_epochs)
        self.every_n_batches = _at_least(0, "every_n_batches", every_n_batches)
        self.topk = _at_least(-1, "topk", topk)
        self.max = _at_least(0, "max", max)
        self.last = last
        if (monitor is not None) != (self.topk != 0):
            raise ConfigError(f"monitor={monitor!r} and topk={topk!r} need each other: give both, or neither.")
        if model_only and not (self.every_n_epochs or self.every_n_batches or self.topk or last):
            raise ConfigError(
                "this CheckpointCallback saves nothing: give every_n_epochs, every_n_batches, topk or last."
            )
        self._monitor = ResultsMonitor(monitor, larger_better) if monitor is not None else None
        self._chose_folder = folder is not None
        self._saver = Saver(os.getcwd() if folder is None else folder, model_only, peft_only, kwargs)
        self._regular: list[str] = []  # what every_n_epochs and every_n_batches have saved, oldest first
        self._best: dict[str, float] = {}  # value by folder

    @property
    def folder(self) -> str:
        """Where it saves."""
        return self._saver.folder

    @property
    def checkpoint_folder(self) -> str | None:
        """The folder, if what is saved in it is what training resumes from."""
        return None if self._saver.model_only else self._saver.folder

    def on_after_trainer_initialized(self, trainer: Trainer) -> None:
        """Raises ConfigError: topk, and no evaluator that gives results."""
        if self.topk and not trainer.evaluators:
            raise ConfigError(
                f"topk={self.topk} chooses by an evaluation's results, and the Trainer has no evaluators."
            )

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        """Save where an epoch is due, and the last."""
        if self.every_n_epochs and (trainer.epoch_idx + 1) % self.every_n_epochs == 0:
            self._save_regularly(trainer, f"epoch_{trainer.epoch_idx + 1}")
        if self.last:
            self._saver.save(trainer, "last")

    def on_train_batch_end(self, trainer: Trainer, loss: Tensor) -> None:
        """Save where a step is due."""
        if self.every_n_batches and (trainer.global_batch_idx + 1) % self.every_n_batches == 0:
            self._save_regularly(trainer, f"epoch_{trainer.epoch_idx}-batch_{trainer.batch_idx + 1}")

    def on_evaluate_end(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """Save where the results are among the best."""
        if self._monitor is None or (value := self._monitor.value(results)) is None:
            return
        kept = self._ranked()[: self.topk]
        if self.topk > 0 and len(kept) == self.topk and not self._monitor.better(value, self._best[kept[-1]]):
            return
        label = re.sub(r"[^A-Za-z0-9_.-]+", "_", self._monitor.monitor_name)
        name = f"epoch_{trainer.epoch_idx}-batch_{trainer.batch_idx + 1}-{label}_{value:.6g}"
        if name in self._best:
            return  # the same step, evaluated twice
        self._best[name] = value  # first, so that it is in the state that is saved with it
        replaced = self._ranked()[self.topk :] if self.topk > 0 else []
        if not self._saver.save(trainer, name, replaced):
            replaced = [name]
        for other in replaced:
            del self._best[other]

    def on_save_checkpoint(self, trainer: Trainer) -> dict[str, Any]:
        """What was saved, and how good it was."""
        return {"folder": self._saver.folder, "regular": list(self._regular), "best": dict(self._best)}

    def on_load_checkpoint(self, trainer: Trainer, states: dict[str, Any] | None) -> None:
        """Go on counting; in the old folder, unless another was given, where nothing has been saved so far."""
        if states is None:
            return
        if not self._chose_folder:
            self._saver.folder = str(states["folder"])
        if self._saver.folder == states["folder"]:
            self._regular = [str(name) for name in states["regular"] if _is_ours(str(name))]
            self._best = {str(name): float(value) for name, value in states["best"].items() if _is_ours(str(name))}

    def _save_regularly(self, trainer: Trainer, name: str) -> None:
        kept = [other for other in self._regular if other != name]
        self._regular = [*kept, name]
        replaced = self._regular[: -self.max] if self.max else []
        if self._saver.save(trainer, name, replaced):
            self._regular = self._regular[len(replaced) :]
        else:
            self._regular = kept

    def _ranked(self) -> list[str]:
        """The folders of the best, the very best first; of equal ones the first saved."""
        sign = -1.0 if self._monitor is not None and self._monitor.larger_better else 1.0
        return sorted(self._best, key=lambda name: sign * self._best[name])


_NAME = re.compile(r"epoch_\d+(-batch_\d+(-[A-Za-z0-9_.+-]+)?)?")


def _is_ours(name: str) -> bool:
    """Whether a name that was read from a checkpoint is such as this callback gives: it may be deleted one day."""
    return _NAME.fullmatch(name) is not None


def _at_least(least: int, name: str, value: int | None) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} is not a whole number of at least {least}.")
    return value
