"""The precision that a model's weights are held in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from collie.config import CollieConfig
from collie.interfaces import ConfigError

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
}


def parse_dtype(value: Any) -> torch.dtype:
    """Return a floating dtype from itself or its name, with or without "torch.".

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return value
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype={value!r} is not a dtype for weights. Use one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def choose_dtype(asked: Any, config: CollieConfig, folder: Path | None = None) -> torch.dtype:
    """Return the first that is given: the argument, ds_config's bf16 or fp16, the checkpoint's own, float32.

    The checkpoint's own is what the config says that was read from it, or its config.json where another was given.
    """
    if asked is not None and asked != "auto":
        return parse_dtype(asked)
    for section, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        asks = config.deepspeed.get(section)  # may also be "auto", or have that inside: as good as not set
        if isinstance(asks, Mapping) and asks.get("enabled") is True:
            return dtype
    own = config.model_config.dtype  # read from "dtype" and "torch_dtype" alike
    if own is None and folder is not None and (folder / "config.json").is_file():
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own = content.get("dtype") or content.get("torch_dtype")
    return parse_dtype(own) if own is not None else torch.float32
