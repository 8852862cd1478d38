"""What an answer needs, and what there is: positions of the model, and memory for its keys and values."""

from typing import Any

import psutil
import torch
from torch import nn
from transformers import GenerationConfig

_DEFAULT_LENGTH = 20  # transformers': where nobody says how long an answer gets


def new_tokens(model: nn.Module, given: GenerationConfig | None, prompt: int) -> int:
    """Return how many tokens `generate` makes at most after a prompt of so many."""
    configs = [config for config in (given, getattr(model, "generation_config", None)) if config is not None]
    for config in configs:
        if config.max_new_tokens is not None:
            return int(config.max_new_tokens)
        if config.max_length is not None:
            return max(0, int(config.max_length) - prompt)
    return _DEFAULT_LENGTH


def positions(model: nn.Module) -> int | None:
    """Return how many tokens the model was made for; None where its config does not say."""
    longest = getattr(_text_config(model), "max_position_embeddings", None)
    return int(longest) if longest else None


def cache_bytes(model: nn.Module, tokens: int, given: GenerationConfig | None) -> int:
    """Return the bytes of this rank's keys and values for so many tokens: 2 · layers · kv_heads · head_dim each.

    A layer that looks back over a window keeps no more than that; beams, and several answers at once, have a cache
    each.
    """
    answers = max(1, *(getattr(given, name, None) or 1 for name in ("num_beams", "num_return_sequences")))
    numbers = sum(width * min(tokens, window or tokens) for width, window in _layers(model))
    return 2 * numbers * answers * _dtype(model).itemsize


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this rank could still allocate on its device; of the host's memory on the CPU."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, which has it already
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is at an end: torch has a class for that on GPUs alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _layers(model: nn.Module) -> list[tuple[int, int | None]]:
    """Return kv_heads · head_dim and the window of each layer here.

    Blocks that a plan splits by heads say what is left of them on this rank; of other models the config says it.
    """
    blocks: list[Any] = [
        block for block in model.modules() if hasattr(block, "kv_heads") and hasattr(block, "head_dim")
    ]
    if blocks:
        return [(int(block.kv_heads) * int(block.head_dim), getattr(block, "window", None)) for block in blocks]
    config = _text_config(model)
    heads = getattr(config, "num_attention_heads", 0)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // max(1, heads)
    return [(int(kv_heads) * int(head_dim), None)] * int(getattr(config, "num_hidden_layers", 0))


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _dtype(model: nn.Module) -> torch.dtype:
    floating = (parameter.dtype for parameter in model.parameters() if parameter.dtype.is_floating_point)
    return next(floating, torch.float32)
