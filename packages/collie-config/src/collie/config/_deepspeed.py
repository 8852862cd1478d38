"""What ds_config says: read from a dict or a file, with its monitors in one spelling.

"auto", which transformers' Trainer has its users write, is as good as not set wherever it may stand.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collie.config._files import read_mapping
from collie.interfaces import ConfigError

SINKS = ("csv_monitor", "tensorboard", "wandb")
MONITOR_KEYS = ("monitor_config", "csv_monitor", "tensorboard", "wandb", "comet")


def read_ds_config(ds_config: Any) -> dict[str, Any]:
    """Return a copy of DeepSpeed's configuration, from a dict or from a JSON or YAML file; empty where there is none.

    Raises:
        ConfigError: it is neither, or the file is not readable.
    """
    if ds_config is None or ds_config == "":
        return {}
    if isinstance(ds_config, Mapping):
        return copy.deepcopy(dict(ds_config))
    if isinstance(ds_config, (str, os.PathLike)):
        return read_mapping(Path(ds_config).expanduser(), "ds_config", suffixes=None)
    raise ConfigError(
        f"ds_config={ds_config!r} has type {type(ds_config).__name__}. Give a dict or the name of a JSON or YAML file."
    )


def zero_stage(deepspeed: Mapping[str, Any]) -> int:
    """Return the ZeRO stage, 0 … 3, that a parsed ds_config asks for.

    Raises:
        ConfigError: it asks for something else.
    """
    zero = deepspeed.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise ConfigError(f'ds_config has zero_optimization={zero!r}. Write {{"stage": 0}}, 1, 2 or 3.')
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise ConfigError(f"ds_config has zero_optimization.stage={stage!r}. Use 0, 1, 2 or 3.")
    return stage


def is_on(deepspeed: Mapping[str, Any], name: str) -> bool:
    """Return whether a parsed ds_config switches the section `name` on, for example "bf16".

    Raises:
        ConfigError: the section is not a dict, or its "enabled" is not a bool.
    """
    section = deepspeed.get(name)
    if section is None or section == "auto":
        return False
    if not isinstance(section, Mapping):
        raise ConfigError(f'ds_config has {name}={section!r}. Write {{"enabled": true}}.')
    enabled = section.get("enabled", False)
    if not isinstance(enabled, bool) and enabled != "auto":
        raise ConfigError(f"ds_config has {name}.enabled={enabled!r}. Use true, false or 'auto'.")
    return enabled is True


def monitor_config(deepspeed: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"tag": str, "csv_monitor": {…}, "tensorboard": {…}, "wandb": {…}}, each sink with a bool "enabled".

    Accepts the spelling of the tutorial's users, {"monitor_config": {"enabled": true, "tag": …, "csv_monitor": {…}}},
    and DeepSpeed's own, {"csv_monitor": {…}} at the top level. A sink's job_name is the tag where it has none.

    Raises:
        ConfigError: a sink is unknown, is not a dict, or "enabled" is not a bool.
    """
    inner = _mapping(deepspeed.get("monitor_config"), "monitor_config")
    allowed = {"enabled", "tag", *SINKS}
    for name in (*inner, *(key for key in MONITOR_KEYS[1:] if key in deepspeed)):
        if name not in allowed and _enabled(deepspeed.get(name, inner.get(name)), name):
            raise ConfigError(f"ds_config asks for the monitor {name!r}. Use {', '.join(SINKS)}.")
    every = _enabled(inner.get("enabled", True), "monitor_config.enabled")
    tag = inner.get("tag", "")
    if not isinstance(tag, str):
        raise ConfigError(f"ds_config has monitor_config.tag={tag!r}, which is not a string.")
    sinks: dict[str, Any] = {"tag": tag}
    for name in SINKS:
        below = name in inner
        sink = _mapping(inner[name] if below else deepspeed.get(name), name)
        sink["enabled"] = bool(sink) and _enabled(sink.get("enabled", below), name) and (every or not below)
        sink["job_name"] = str(sink.get("job_name") or tag or "collie")
        sinks[name] = sink
    return sinks


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is None or value == "auto":
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"ds_config has {name}={value!r}, which is not a dict.")
    return {key: copy.deepcopy(item) for key, item in value.items() if item != "auto"}


def _enabled(value: Any, name: str) -> bool:
    """Return whether a value switches something on: a bool, or a dict with "enabled"."""
    if isinstance(value, Mapping):
        value = value.get("enabled", False)
    if value == "auto":
        return False
    if not isinstance(value, bool):
        raise ConfigError(f"ds_config has {name}={value!r}. Use true or false.")
    return value
