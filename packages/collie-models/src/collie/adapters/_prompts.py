"""Prompts that are learnt (prompt, prefix and P-tuning): PEFT's own wrapper around a model of ours.

The model is not changed: PEFT puts embeddings before those of the tokens (Lester et al. 2021; Liu et al. 2021), or keys
and values into the cache (Li and Liang 2021). Under ZeRO-3 these are split over the ranks as all else is.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from collie.adapters._files import WEIGHTS
from collie.adapters._supported import kind_of, peft_module
from collie.interfaces import CheckpointError, ConfigError
from collie.models import CollieModelForCausalLM
from collie.module import Attention
from collie.parallel import (
    Topology,
    active_topology,
    borrow,
    close_engine,
    full_parameters,
    mark_added,
    materialise,
    release_parameters,
)

_KEY = "prompt_embeddings"  # in PEFT's files


def wrap_with_prompts(
    model: CollieModelForCausalLM, asked: Any, adapter_name: str, values: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Return PEFT's PeftModelForCausalLM around a model. Collective.

    Args:
        model: without an engine that trains.
        asked: a PeftConfig of prompts; sizes that it leaves open are the model's.
        adapter_name: what PEFT calls it.
        values: of a saved adapter; else they are drawn by the config's seed, alike on every rank.

    Raises:
        ConfigError: the family finds positions in the tokens, which prompts have none of.
        CheckpointError: the values are of another shape.
    """
    if type(model).arrange is not CollieModelForCausalLM.arrange:
        raise ConfigError(
            f"peft_type={kind_of(asked)!r}: {type(model).__name__} finds positions and what may be seen in the tokens, "
            f"and prompts are none. Use LoRA."
        )
    config, topology, dtype = model.collie_config, active_topology(), model.dtype
    close_engine(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        wrapped: nn.Module = peft_module().get_peft_model(
            model, _sized(asked, model), adapter_name, autocast_adapter_dtype=False
        )
    drawn: dict[str, Tensor] = {}
    encoders = wrapped.get_submodule(f"prompt_encoder.{adapter_name}")
    for name, parameter in list(encoders.named_parameters()):
        drawn[f"prompt_encoder.{adapter_name}.{name}"] = parameter.detach().cpu()
        owner, _, attribute = name.rpartition(".")
        empty = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        encoders.get_submodule(owner)._parameters[attribute] = mark_added(empty)
    if values is not None:
        _replace(drawn, f"prompt_encoder.{adapter_name}.embedding.weight", values)

    def fill(name: str, shape: torch.Size, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        return drawn[name].flatten()[start:stop].to(dtype)

    materialise(wrapped, config, topology, dtype, fill)
    borrow(wrapped, encoders.parameters())  # when nothing is trained, PEFT reads them without calling the encoder
    return wrapped


def _sized(asked: Any, model: CollieModelForCausalLM) -> Any:
    """Return the config with what PEFT cannot find in every family's: for a prefix the sizes of keys and values."""
    config = copy.deepcopy(asked)
    config.task_type = "CAUSAL_LM"
    if kind_of(asked) == "PREFIX_TUNING":
        attention = next(module for module in model.modules() if isinstance(module, Attention))
        config.num_layers = len(model.layers)
        config.num_attention_heads = attention.kv_heads
        config.token_dim = attention.kv_heads * attention.head_dim
    return config


def _replace(drawn: dict[str, Tensor], name: str, values: Mapping[str, Tensor]) -> None:
    found = values.get(_KEY)
    if found is None or found.shape != drawn[name].shape:
        what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
        raise CheckpointError(
            f"{_KEY!r} {what}; the model's has {tuple(drawn[name].shape)}. Check that it was made for this model."
        )
    drawn[name] = found


def read_prompts(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of saved prompts.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is no safetensors file: {error}. Save the adapter again.") from error


def refuse_training_of_saved(peft_config: Any) -> None:
    """Refuse to go on with what was saved without what made it.

    Raises:
        ConfigError: PEFT saves the prompts that an encoder gave, and not the encoder.
    """
    if kind_of(peft_config) == "P_TUNING" or getattr(peft_config, "prefix_projection", False):
        raise ConfigError(
            f"is_trainable=True: of {kind_of(peft_config)} PEFT saves the prompts, and not the encoder that made them: "
            f"its training cannot go on. Leave is_trainable out."
        )


@torch.no_grad()
def prompts_of(wrapped: Any, adapter_name: str, topology: Topology) -> dict[str, Tensor]:
    """Return what PEFT saves of prompts, on rank 0. Collective."""
    if wrapped.peft_config[adapter_name].inference_mode:
        wanted = f"prompt_encoder.{adapter_name}.embedding.weight"
        found = dict(full_parameters(wrapped, topology, only=lambda name, parameter: name == wanted))
        whole = found[wanted]
        return {_KEY: whole} if whole is not None else {}
    training = wrapped.training
    prompts = wrapped.eval().get_prompt_embedding_to_save(adapter_name)
    wrapped.train(training)
    release_parameters(wrapped)
    return {_KEY: prompts.contiguous()}
