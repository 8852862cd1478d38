"""Folders that a callback saves into, and deletes again: no others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import fsspec

from collie.adapters import adapter_of, wrapped_adapters
from collie.interfaces import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collie.controller.trainer import Trainer


class Saver:
    """Saves a Trainer's model, adapter or checkpoint into folders below one.

    Args:
        folder: a path, or a URL that fsspec knows.
        model_only: whether weights alone are saved, or all that training resumes from.
        peft_only: with model_only, whether of a model with an adapter the adapter alone is.
        arguments: passed on to Trainer.save_model, save_peft or save_checkpoint.

    Raises:
        ConfigError: `protocol` is among the arguments and not "file": it belongs into the folder, as a URL.
    """

    def __init__(
        self, folder: str | os.PathLike[str], model_only: bool, peft_only: bool, arguments: dict[str, Any]
    ) -> None:
        protocol = arguments.pop("protocol", "file")
        if protocol != "file":
            raise ConfigError(f"protocol={protocol!r}: write it into the folder, as in folder='{protocol}://…'.")
        self.folder = os.fspath(folder).rstrip("/") or "/"
        self.model_only, self.peft_only = model_only, peft_only
        self._arguments = arguments
        self._condemned: set[str] = set()  # to be deleted once what replaces them is complete, by whichever thread

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def save(self, trainer: Trainer, name: str, replaced: Sequence[str] = ()) -> bool:
        """Save into the folder `name`, and then delete those that it takes the place of.

        What the file system refuses (a full disk) is told as an alert, training goes on, and nothing is deleted.
        Checkpoints are written behind the training: what they replace is deleted when they are complete.

        Returns:
            Whether it was saved, or began to be: the same on every rank.
        """
        path = self.path(name)
        self._condemned.discard(name)
        self._condemned.update(replaced)
        condemned = tuple(self._condemned)  # as of now: what comes later waits for its own successor
        try:
            if not self.model_only:
                trainer.save_checkpoint(
                    path, wait=False, then=lambda _: self._delete(trainer, condemned), **self._arguments
                )
                return True
            save = trainer.save_peft if self._saves_adapter(trainer) else trainer.save_model
            save(path, **self._arguments)
        except CheckpointError as error:
            self._condemned.difference_update(replaced)
            trainer.alert("checkpoint", f"{path} was not saved, and training goes on: {error}")
            return False
        self._delete(trainer, condemned)
        return True

    def load(self, trainer: Trainer, name: str) -> None:
        """Load the model or the adapter that `save` has written into the folder `name`."""
        (trainer.load_peft if self._saves_adapter(trainer) else trainer.load_model)(self.path(name))

    def delete(self, trainer: Trainer, name: str) -> None:
        """Delete the folder `name`, which must be one that `save` has written. What fails is an alert."""
        if trainer.topology.rank != 0:
            return
        try:
            system, path = fsspec.core.url_to_fs(self.path(name))
            if system.exists(path):
                system.rm(path, recursive=True)
        except Exception as error:  # each file system has its own, and none of them is worth a training
            trainer.alert("checkpoint", f"{self.path(name)} was not deleted: {error}")

    def _saves_adapter(self, trainer: Trainer) -> bool:
        """By what the model has: an adapter may have come by load_peft, or be in PEFT's wrapper, without a config's."""
        adapted = adapter_of(trainer.model) is not None or wrapped_adapters(trainer.model) is not None
        return self.peft_only and adapted

    def _delete(self, trainer: Trainer, names: Iterable[str]) -> None:
        for name in names:
            if name in self._condemned:  # not yet deleted, and not saved again
                self._condemned.discard(name)
                self.delete(trainer, name)
