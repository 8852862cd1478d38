"""Weights to and from Hugging Face folders, on a disk or by a URL, for the model of a Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from collie.adapters import refuse_wrapper
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.models.weights import is_url, model_target, remote_model, writing
from collie.parallel import Topology, full_parameters, together


def save_model(model: nn.Module, topology: Topology, path: str | Path, tokenizer: Any, **arguments: Any) -> None:
    """Write the model's weights and config, and the tokenizer where there is one; every rank ends at the same point.

    A model of transformers is gathered on the CPU of rank 0, which writes it by the model's own `save_pretrained`.

    Raises:
        ConfigError: the model cannot write itself, or has an adapter.
        CheckpointError: the file system refused; on every rank.
    """
    refuse_wrapper(model, f"save_model({str(path)!r})")
    if isinstance(model, CollieModelForCausalLM):
        model.save_pretrained(path, tokenizer=tokenizer, **arguments)
    elif hasattr(model, "save_pretrained"):
        state = {name: tensor for name, tensor in full_parameters(model, topology) if tensor is not None}
        saved = model.state_dict().keys()
        state.update((name, buffer.cpu()) for name, buffer in model.named_buffers() if name in saved)
        write: Callable[..., Any] = model.save_pretrained  # type: ignore[assignment]  # transformers' method

        def into(folder: str | Path) -> None:
            write(folder, state_dict=state, **arguments)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)

        _on_rank_zero(into, topology, path)
    else:
        raise ConfigError(f"{type(model).__name__} has no save_pretrained: save it through its own methods.")
    topology.barrier()


def load_model(model: nn.Module, topology: Topology, path: str | Path) -> None:
    """Replace the weights of a model of collie.models, and an optimizer's copies of them, by a checkpoint's.

    Raises:
        ConfigError: the model is of another kind.
        CheckpointError: a tensor is missing or misshapen.
    """
    if not isinstance(model, CollieModelForCausalLM):
        raise ConfigError(
            f"load_model reads into models of collie.models, and this is a {type(model).__name__}: "
            f"make it with its own from_pretrained({str(path)!r}) before the Trainer."
        )
    model.load_weights(path)
    topology.barrier()


def size_of(path: str | Path) -> int:
    """Return the bytes of a saved folder's files."""
    if is_url(path):
        return remote_model(str(path)).bytes
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def _on_rank_zero(write: Callable[[str | Path], Any], topology: Topology, path: str | Path) -> None:
    """Let rank 0 write to a folder; what stops it is raised on every rank, so that none waits for the others."""

    def work() -> None:
        if topology.rank != 0:
            return
        if not is_url(path):
            write(path)
            return
        with writing(model_target(path)) as folder:
            write(folder)

    together(topology, f"{path} could not be written", work)
