"""config.json of a saved model, in the spelling that its source had."""

import copy
import json
from pathlib import Path
from typing import Any

import torch

_SPELLINGS = {"rope_parameters": ("rope_theta", "rope_scaling")}  # transformers 5: what transformers 4 calls it
_NOT_THE_MODELS = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "model_type"}


def config_json(config: Any, source: Path | None, dtype: torch.dtype, architecture: str) -> dict[str, Any]:
    """Return the contents of config.json for weights in `dtype`.

    With a source it is the source's own file, with only those values replaced that were changed since it was read:
    what read the source reads this. Without one it is the config's own full description.
    """
    now = _values(config)
    written = source / "config.json" if source is not None else None
    if written is None or not written.is_file():
        return now | {"architectures": [architecture], "dtype": _name(dtype)}
    content: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    then = _values(type(config).from_dict(copy.deepcopy(content)))  # which changes nested dicts
    for key, value in now.items():
        if key in _NOT_THE_MODELS or then.get(key) == value:
            continue
        for older in _SPELLINGS.get(key, ()):
            content.pop(older, None)
        content[key] = value
    content["dtype" if "dtype" in content else "torch_dtype"] = _name(dtype)
    return content


def _values(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return values


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
