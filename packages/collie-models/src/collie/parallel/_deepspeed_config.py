"""The DeepSpeed configuration of a run: the user's ds_config, completed from CollieConfig."""

from typing import Any

import torch

from collie.config import MONITOR_KEYS, CollieConfig
from collie.interfaces import ConfigError


def deepspeed_config(config: CollieConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the dict that `deepspeed.initialize` gets for a model whose parameters are in `dtype`.

    `gradient_clipping` is always written: DeepSpeed's own default clips at norm 1.0. The precision section follows
    the parameters, since DeepSpeed refuses a model that is in another one.

    Raises:
        ConfigError: ds_config asks for a precision that the model is not in.
    """
    asked = _without_auto(config.deepspeed)
    for key in MONITOR_KEYS:  # our monitors write these
        asked.pop(key, None)
    asked.pop("train_batch_size", None)  # DeepSpeed computes it; `validate` has compared it
    _match_precision(asked, dtype)
    zero = dict(asked.pop("zero_optimization", None) or {})
    return {
        **asked,
        "train_micro_batch_size_per_gpu": config.train_micro_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": asked.get("gradient_clipping", 0.0),
        "zero_allow_untested_optimizer": asked.get("zero_allow_untested_optimizer", True),
        "zero_force_ds_cpu_optimizer": asked.get("zero_force_ds_cpu_optimizer", False),
        "zero_optimization": {"stage": 0, **zero},
        "steps_per_print": asked.get("steps_per_print", 2**31),  # our own progress speaks
    }


def _without_auto(section: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without the values "auto", which in files written for other trainers mean: not set here."""
    kept = {key: value for key, value in section.items() if value != "auto"}
    return {key: _without_auto(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _match_precision(asked: dict[str, Any], dtype: torch.dtype) -> None:
    sections = {"bf16": torch.bfloat16, "fp16": torch.float16}
    for name, precision in sections.items():
        section = dict(asked.get(name) or {})
        if section.get("enabled") and dtype is not precision:
            raise ConfigError(
                f"ds_config[{name!r}] is enabled, but the model's parameters are {dtype}. "
                f"Load the model with dtype={precision}, or take {name!r} out of ds_config."
            )
        if dtype is precision:
            asked[name] = {**section, "enabled": True}
