"""Folders that a callback saves into, and deletes again: no others."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import fsspec

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

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def save(self, trainer: Trainer, name: str) -> bool:
        """Save into the folder `name`; return whether that went well, which is the same on every rank.

        What the file system refuses (a full disk) is told as an alert, and training goes on.
        """
        try:
            self._method(trainer)(self.path(name), **self._arguments)
        except CheckpointError as error:
            trainer.alert("checkpoint", f"{self.path(name)} was not saved, and training goes on: {error}")
            return False
        return True

    def load(self, trainer: Trainer, name: str) -> None:
        """Load the model or the adapter that `save` has written into the folder `name`."""
        peft = self.peft_only and trainer.config.uses_peft
        (trainer.load_peft if peft else trainer.load_model)(self.path(name))

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

    def _method(self, trainer: Trainer) -> Callable[..., Any]:
        if not self.model_only:
            return trainer.save_checkpoint
        if self.peft_only and trainer.config.uses_peft:
            return trainer.save_peft
        return trainer.save_model
