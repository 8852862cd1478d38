"""Makes the objects of transformers and peft that a configuration holds. No code of a checkpoint ever runs here."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collie.interfaces import ConfigError, nearest, require

# What from_pretrained passes on to the download; all else it is given are fields.
HUB_OPTIONS = frozenset(
    {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token", "use_auth_token"}
)


def empty_model_config() -> Any:
    """Return transformers.PretrainedConfig().

    Raises:
        MissingExtraError: transformers is not installed.
    """
    return require("transformers", "collie-config[hf]", "model_config").PretrainedConfig()


def model_config_from(values: Mapping[str, Any], source: str = "model_config") -> Any:
    """Return the configuration with the fields of a config.json; `source` names where they come from in errors.

    A model_type that transformers has gets its class, any other a plain one that keeps every field. `auto_map` is a
    field like any other: it is kept, and what it names is not imported.

    Raises:
        ConfigError: the model_type's class refuses the values.
        MissingExtraError: transformers is not installed.
    """
    require("transformers", "collie-config[hf]", "model_config")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from collie.config._plain import PlainModelConfig

    model_type = values.get("model_type", "")
    if not isinstance(model_type, str):
        raise ConfigError(f"{source} has model_type={model_type!r}, which is not a string. Set it to the model's type.")
    try:
        if model_type in CONFIG_MAPPING:
            return CONFIG_MAPPING[model_type].from_dict(dict(values))
        return PlainModelConfig.from_fields(values)
    except Exception as error:  # each class checks in its own way, with errors of its own
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{source} (model_type={model_type!r}) has a value that its model refuses: {reason}"
        ) from error


def read_model_config(name_or_path: str | os.PathLike[str], **hub: Any) -> Any:
    """Return the configuration in config.json of a folder, of such a file, or of a repository on the hub.

    Raises:
        ConfigError: there is no config.json, or it is not readable.
        MissingExtraError: transformers is not installed.
    """
    source = os.fspath(name_or_path)
    path = Path(source).expanduser()
    if source and path.is_dir():
        values = _local(path / hub.get("subfolder", "") / "config.json", source)
    elif path.is_file():
        values = _local(path, source)
    elif source.startswith((".", "/", "~")) or source.count("/") > 1 or not source:
        raise ConfigError(f"pretrained_model_name_or_path={source!r} does not exist. Give a folder with a config.json.")
    else:
        values = _remote(source, hub)
    config = model_config_from(values, f"config.json of {source!r}")
    config._name_or_path = source
    return config


def _local(path: Path, source: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"pretrained_model_name_or_path={source!r} has no {path.name}. Give the folder of a checkpoint."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not readable as JSON: {error}. Write the checkpoint anew.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not an object. Write the checkpoint anew.")
    return values


def _remote(name: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    transformers = require("transformers", "collie-config[hf]", f"pretrained_model_name_or_path={name!r}")
    try:
        values, _ = transformers.PretrainedConfig.get_config_dict(name, **hub)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"pretrained_model_name_or_path={name!r} is no folder here and no config.json of it could be read "
            f"from the hub: {' '.join(str(error).split())}"
        ) from error
    return dict(values)


def empty_peft_config() -> Any:
    """Return peft.PeftConfig(), which means no adapter; None where peft is not installed."""
    try:
        return require("peft", "collie-models[peft]").PeftConfig()
    except ImportError:
        return None


def peft_config_from(values: Mapping[str, Any]) -> Any:
    """Return the adapter configuration that `values` describe; "peft_type" in them names its kind, none means none.

    Raises:
        ConfigError: the kind is unknown or refuses a value.
        MissingExtraError: peft is not installed.
    """
    peft = require("peft", "collie-models[peft]", "peft_config")
    kinds = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    arguments = dict(values)
    kind = arguments.pop("peft_type", None)
    if kind is not None and kind not in kinds:
        known = ", ".join(sorted(str(getattr(name, "value", name)) for name in kinds))
        raise ConfigError(f"peft_config has peft_type={kind!r}. Use one of {known}.")
    try:
        return peft.PeftConfig(**arguments) if kind is None else kinds[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"peft_config (peft_type={kind!r}) has a value that peft refuses: {error}") from error


def empty_quantization_config() -> Any:
    """Return transformers.BitsAndBytesConfig(), which means none; None where transformers or torch is not installed."""
    try:
        return require("transformers", "collie-config[hf]").BitsAndBytesConfig()
    except (ImportError, NameError):  # without torch the class trips over torch's name
        return None


def quantization_config_from(values: Mapping[str, Any]) -> Any:
    """Return the BitsAndBytesConfig that `values` describe.

    Raises:
        ConfigError: it refuses a value.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", "collie-config[hf]", "quantization_config")
    known = inspect.signature(transformers.BitsAndBytesConfig).parameters  # it takes any other name, and only logs it
    for name in values:
        if name not in known and name != "quant_method" and not name.startswith("_"):
            meant = nearest(name, known)
            mend = f"Did you mean {meant!r}?" if meant else "Leave it out."
            raise ConfigError(f"quantization_config has {name}={values[name]!r}, unknown to BitsAndBytesConfig. {mend}")
    try:
        return transformers.BitsAndBytesConfig(**{name: value for name, value in values.items() if name in known})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"quantization_config={dict(values)!r} is refused by BitsAndBytesConfig: {error}") from error
