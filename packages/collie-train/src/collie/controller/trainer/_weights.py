"""Weights to and from Hugging Face folders, for the model of a Trainer."""

from pathlib import Path
from typing import Any

from torch import nn

from collie.interfaces import ConfigError
from collie.parallel import Topology


def save_model(model: nn.Module, topology: Topology, path: str | Path, tokenizer: Any, **arguments: Any) -> None:
    """Write the model's weights and config, and the tokenizer where there is one; ends with a barrier.

    Raises:
        ConfigError: the model cannot write itself.
        CheckpointError: the file system refused.
    """
    _method(model, "save_pretrained")(path, **arguments)
    if tokenizer is not None and topology.rank == 0:
        tokenizer.save_pretrained(path)
    topology.barrier()


def load_model(model: nn.Module, topology: Topology, path: str | Path) -> None:
    """Replace the model's weights, and an optimizer's copies of them, by a checkpoint's; ends with a barrier.

    Raises:
        ConfigError: the model cannot read them.
        CheckpointError: a tensor is missing or misshapen.
    """
    _method(model, "load_weights")(path)
    topology.barrier()


def size_of(path: str | Path) -> int:
    """Return the bytes of a saved folder's files."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def _method(model: nn.Module, name: str) -> Any:
    method = getattr(model, name, None)
    if method is None:
        raise ConfigError(
            f"{type(model).__name__} has no {name}. The Trainer saves and loads models of collie.models; "
            f"save this one through its own methods."
        )
    return method
