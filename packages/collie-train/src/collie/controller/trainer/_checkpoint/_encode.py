"""States of schedulers and callbacks as JSON and back, with their Python types: keys that are numbers, tuples, inf."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from collie.interfaces import CheckpointError

_MARK = "!"  # begins the one key of a dict that stands for something else
_ELEMENTS = 10_000  # of a tensor that is written as numbers


def encode(value: Any, where: str) -> Any:
    """Return JSON values that `decode` turns back.

    Args:
        value: numbers, text, None, lists, tuples, dicts, Counters, numpy's numbers and small tensors.
        where: whose state it is, for the error.

    Raises:
        CheckpointError: it holds something else, such as a function: nothing in a checkpoint is ever executed.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        return encode(value.item(), where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {f"{_MARK}float": repr(float(value))}
    if isinstance(value, list):
        return [encode(item, where) for item in value]
    if isinstance(value, tuple):
        return {f"{_MARK}tuple": [encode(item, where) for item in value]}
    if isinstance(value, Mapping):
        return _mapping(value, where)
    if isinstance(value, Tensor) and value.numel() <= _ELEMENTS:
        dtype = str(value.dtype).removeprefix("torch.")
        return {f"{_MARK}tensor": [dtype, list(value.shape), encode(value.flatten().tolist(), where)]}
    raise CheckpointError(
        f"the state of {where} holds a {type(value).__name__}: a checkpoint keeps numbers, text, lists, dicts and "
        f"tensors of up to {_ELEMENTS} elements there. Leave it out of the state, or keep it as one of these."
    )


def decode(value: Any) -> Any:
    """Return what `encode` was given."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (mark := next(iter(value))).startswith(_MARK):
        return _marked(mark.removeprefix(_MARK), value[mark])
    return {key: decode(item) for key, item in value.items()}


def _mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    if not isinstance(value, Counter) and all(isinstance(key, str) and not key.startswith(_MARK) for key in value):
        return {key: encode(item, f"{where} ({key})") for key, item in value.items()}
    kind = "counter" if isinstance(value, Counter) else "pairs"
    return {f"{_MARK}{kind}": [[encode(key, where), encode(item, where)] for key, item in value.items()]}


def _marked(kind: str, value: Any) -> Any:
    if kind == "float":
        return float(value)
    if kind == "tuple":
        return tuple(decode(value))
    if kind == "pairs":
        return {_key(decode(key)): decode(item) for key, item in value}
    if kind == "counter":
        return Counter({_key(decode(key)): item for key, item in value})
    if kind == "tensor":
        dtype, shape, elements = value
        return torch.tensor(decode(elements), dtype=getattr(torch, dtype)).reshape(shape)
    raise CheckpointError(
        f"a state is marked {kind!r}, which this version does not know: it was written by a later one."
    )


def _key(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
