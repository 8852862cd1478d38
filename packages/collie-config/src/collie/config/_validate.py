"""Checks every value of a configuration before any rank works."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from collie.config._deepspeed import is_on
from collie.interfaces import ConfigError, ParallelSizeError, nearest

if TYPE_CHECKING:
    from collie.config._config import CollieConfig

INITIALIZATIONS = (
    "none",
    "normal",
    "uniform",
    "trunc_normal",
    "xavier_normal",
    "xavier_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "orthogonal",
)

_LEAST = {  # whole numbers: the least value each may have
    "seed": 0,
    "dp_size": 1,
    "pp_size": 1,
    "tp_size": 1,
    "train_epochs": 1,
    "eval_per_n_steps": 0,
    "eval_per_n_epochs": 0,
    "train_micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_batch_size": 1,
    "dataloader_num_workers": 0,
}
_SAME = {  # DeepSpeed's names of our fields: they may be given there too, but not differently
    "train_micro_batch_size_per_gpu": "train_micro_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
}
_SWITCHES = ("sequence_parallel", "checkpointing", "use_flash", "low_cpu_mem_usage", "group_by_length")
_SCHEDULES = ("1f1b", "interleaved")
_ON_NAN = ("stop", "skip", "ignore")
_OBJECTS = ("model_config", "peft_config", "quantization_config")


def check_values(config: CollieConfig) -> None:
    """Check each field alone, and ds_config against the others.

    Raises:
        ConfigError: a value cannot work; the message names the field, the value and the mend.
        MissingExtraError: a value needs a package that is not installed.
    """
    for name, least in _LEAST.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}={value!r} is not a whole number of at least {least}. Set it to {least} or more.")
    if config.seed >= 2**32:
        raise ConfigError(f"seed={config.seed} does not fit 32 bits. Set it below 4294967296.")
    for name in _SWITCHES:
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{name}={getattr(config, name)!r} is not a bool. Set it to True or False.")
    if config.sequence_parallel and config.tp_size == 1:
        raise ConfigError(
            "sequence_parallel=True splits sequences over tensor-parallel ranks, and tp_size=1 has no second one. "
            "Set tp_size to 2 or more, or sequence_parallel to False."
        )
    dropout = config.dropout
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ConfigError(f"dropout={dropout!r} is not a probability. Set it to at least 0.0 and below 1.0.")
    _check_partition(config.pp_partition_method)
    if config.pp_schedule not in _SCHEDULES:
        raise ConfigError(f"pp_schedule={config.pp_schedule!r} is unknown. Use {' or '.join(map(repr, _SCHEDULES))}.")
    if config.on_nan not in _ON_NAN:
        raise ConfigError(f"on_nan={config.on_nan!r} is unknown. Use {', '.join(map(repr, _ON_NAN))}.")
    _check_initialization(config.initization_method, config.initization_method_params)
    _check_objects(config)
    _check_ds_config(config)


def check_sizes(config: CollieConfig, asked: int, world_size: int, *, warn: bool) -> int:
    """Return the data-parallel size in a world of `world_size` ranks, where dp_size=`asked` was asked for.

    `warn` says so where a dp_size of 1 becomes another.

    Raises:
        ParallelSizeError: the sizes do not fit the world.
    """
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ParallelSizeError(
            f"world_size={world_size!r} is not a whole number of at least 1. Give the number of ranks."
        )
    tp, pp = config.tp_size, config.pp_size
    if world_size % (tp * pp):
        raise ParallelSizeError(
            f"tp_size={tp} × pp_size={pp} = {tp * pp} does not divide the world of {world_size} ranks. "
            f"Start a multiple of {tp * pp} ranks, or set sizes whose product divides {world_size}."
        )
    dp = world_size // (tp * pp)
    if asked not in (1, dp):
        raise ParallelSizeError(
            f"dp_size={asked} × tp_size={tp} × pp_size={pp} = {asked * tp * pp} is not the world of {world_size} ranks."
            f" Set dp_size={dp}, or leave it at 1 to have it set by itself."
        )
    if warn and dp != asked and os.environ.get("RANK", "0") == "0":  # one warning a job, not one a rank
        warnings.warn(
            f"dp_size=1 becomes {dp}: {world_size} ranks / (tp_size={tp} × pp_size={pp}).", UserWarning, stacklevel=3
        )
    return dp


def check_batch_size(config: CollieConfig, dp_size: int) -> None:
    """Check that ds_config, where it gives the size of a whole step, gives that of the other fields.

    Raises:
        ConfigError: it gives another.
    """
    asked = config.deepspeed.get("train_batch_size", "auto")
    micro, accumulation = config.train_micro_batch_size, config.gradient_accumulation_steps
    if asked not in ("auto", micro * accumulation * dp_size):
        raise ConfigError(
            f"ds_config has train_batch_size={asked!r}, but train_micro_batch_size={micro} × "
            f"gradient_accumulation_steps={accumulation} × dp_size={dp_size} = {micro * accumulation * dp_size}. "
            "Leave it out of ds_config."
        )


def _check_partition(method: Any) -> None:
    if isinstance(method, str):
        if method in ("parameters", "uniform"):
            return
        if method.startswith("type:") and method != "type:":
            try:
                re.compile(method.removeprefix("type:"))
                return
            except re.error as error:
                raise ConfigError(
                    f"pp_partition_method={method!r} is no regular expression after 'type:': {error}. Mend it."
                ) from error
    raise ConfigError(f"pp_partition_method={method!r} is unknown. Use 'parameters', 'uniform' or 'type:REGEX'.")


def _check_initialization(method: Any, params: Any) -> None:
    if method not in INITIALIZATIONS:
        meant = nearest(method, INITIALIZATIONS) if isinstance(method, str) else None
        use = f"Use {meant!r}" if meant else f"Use one of {', '.join(INITIALIZATIONS)}"
        raise ConfigError(f"initization_method={method!r} is unknown. {use}.")
    if params is None:
        return
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        raise ConfigError(
            f"initization_method_params={params!r} is no dict of names and values. Write for example {{'std': 0.02}}."
        )
    if params and method == "none":
        raise ConfigError(
            f"initization_method_params={params!r} has no effect with initization_method='none'. "
            "Set initization_method too, or leave both."
        )


def _check_objects(config: CollieConfig) -> None:
    """Make the objects that were given as dicts, and refuse what is no configuration at all."""
    for name in _OBJECTS:
        if not config.is_set(name):
            continue
        value = getattr(config, name)
        if value is not None and not callable(getattr(value, "to_dict", None)):
            raise ConfigError(
                f"{name}={value!r} has type {type(value).__name__}. Give a configuration object or a dict."
            )
    if config.is_set("model_config") and config.model_config is None:
        raise ConfigError("model_config=None describes no model. Use CollieConfig.from_pretrained or set one.")


def _check_for_stages(pp_size: int, deepspeed: Mapping[str, Any]) -> None:
    """Refuse what DeepSpeed does inside its own backward pass, which a pipeline does not call."""
    sections = (
        ("zero_optimization", "overlap_comm"),
        ("data_types", "grad_accum_dtype"),
        ("bf16", "immediate_grad_update"),
    )
    for section, key in sections:
        if (deepspeed.get(section) or {}).get(key) not in (None, False, "auto"):
            raise ConfigError(
                f"ds_config[{section!r}][{key!r}] works inside DeepSpeed's backward pass, and with pp_size={pp_size} "
                f"the pipeline makes its own. Take {key} out, or set pp_size to 1."
            )


def _check_ds_config(config: CollieConfig) -> None:
    stage = config.zero_stage  # reads ds_config and its stage, with an error where either is wrong
    _ = config.monitor_config
    if config.pp_size > 1 and stage >= 2:
        raise ConfigError(
            f"ds_config asks for ZeRO stage {stage} with pp_size={config.pp_size}. A pipeline stage keeps its "
            "gradients until its last micro-batch: nothing to partition in between. Use stage 0 or 1, or pp_size=1."
        )
    deepspeed = config.deepspeed
    if config.pp_size > 1:
        _check_for_stages(config.pp_size, deepspeed)
    both = [name for name in ("fp16", "bf16") if is_on(deepspeed, name)]
    if len(both) == 2:
        raise ConfigError("ds_config enables both fp16 and bf16. Enable one of them.")
    for name, ours in _SAME.items():
        value = getattr(config, ours)
        if deepspeed.get(name, "auto") not in ("auto", value):
            raise ConfigError(
                f"ds_config has {name}={deepspeed[name]!r}, but {ours}={value}. Leave it out of ds_config."
            )
