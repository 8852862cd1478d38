"""The events of a training run, as methods to override."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from collie.controller.trainer import Trainer


class Callback:
    """Does nothing at every event: override those that you need. Every rank calls its callbacks at the same steps.

    A step, in `on_train_batch_*`, is one optimizer step in every layout: all micro-batches of all data-parallel ranks.
    What a callback raises ends the run.
    """

    @property
    def callback_name(self) -> str:
        """The name for this callback's state in checkpoints: its class's, unless overridden."""
        return type(self).__name__

    def on_setup_parallel_model(self, trainer: Trainer) -> None:
        """The model is in its engine, spread over the ranks."""

    def on_after_trainer_initialized(self, trainer: Trainer) -> None:
        """The Trainer is ready: its model, loader, monitors and evaluators are there."""

    def on_train_begin(self, trainer: Trainer) -> None:
        """`train()` was called; no step has been made."""

    def on_train_end(self, trainer: Trainer) -> None:
        """The last step of `train()` is done."""

    def on_train_epoch_begin(self, trainer: Trainer) -> None:
        """An epoch begins, or goes on where a checkpoint left it."""

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        """The last step of an epoch is done."""

    def on_train_batch_begin(self, trainer: Trainer, batch: Any) -> None:
        """A step begins. `batch`: the first of its micro-batches on this rank, a dict of tensors [B, S]."""

    def on_train_batch_end(self, trainer: Trainer, loss: Tensor) -> None:
        """A step is done. `loss`: 0-d, the mean over the target tokens of the global batch, equal on every rank."""

    def on_save_model(self, trainer: Trainer) -> None:
        """`save_model` has written the weights."""

    def on_load_model(self, trainer: Trainer) -> None:
        """`load_model` has loaded the weights."""

    def on_save_checkpoint(self, trainer: Trainer) -> dict[str, Any] | None:
        """A checkpoint is being written. What is returned (JSON values) comes back in `on_load_checkpoint`."""
        return None

    def on_load_checkpoint(self, trainer: Trainer, states: dict[str, Any] | None) -> None:
        """A checkpoint was loaded. `states`: what `on_save_checkpoint` returned for it, or None."""

    def on_evaluate_begin(self, trainer: Trainer) -> None:
        """The evaluators are about to run."""

    def on_evaluate_end(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """The evaluators have run. `results`: by metric name, equal on every rank."""
