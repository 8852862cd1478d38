"""Calling models and losses by what they accept: a batch's entries go where a parameter names them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from collie.interfaces import ConfigError


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward has a parameter of that name; an adapter's wrapper is asked for what it wraps."""
    if argument in _parameters(model.forward):
        return True
    unwrap = getattr(model, "get_base_model", None)
    return callable(unwrap) and argument in _parameters(unwrap().forward)


def model_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of `batch` that the model's forward takes; labels are left out.

    Raises:
        ConfigError: the batch's rows are packed, and the model does not say that it keeps them apart.
    """
    if "cu_seqlens" in batch and not accepts(model, "cu_seqlens"):
        raise ConfigError(
            f"the batch's rows are packed (it has cu_seqlens), and {type(model).__name__}.forward has no such "
            f"parameter: rows would see each other. Train it on rows apart, without `packed`, or use a model of "
            f"collie.models."
        )
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor) and key != "labels"}
    parameters = _parameters(model.forward)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return tensors
    return {key: value for key, value in tensors.items() if key in parameters}


def as_dict(outputs: Any) -> dict[str, Any]:
    """Return what a model returned, by name; a bare tensor is its logits."""
    if isinstance(outputs, Tensor):
        return {"logits": outputs}
    return dict(outputs) if isinstance(outputs, Mapping) else dict(vars(outputs))


def call_by_name(function: Callable[..., Any], values: Mapping[str, Any], what: str = "loss_fn") -> Any:
    """Call `function` with those of `values` that its parameters name; `what` is its name in a sentence.

    Raises:
        ConfigError: a parameter without a default is not among `values`, or is None there.
    """
    parameters = _parameters(function.forward if isinstance(function, nn.Module) else function).values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return function(**values)
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
    missing = [p.name for p in named if p.default is p.empty and values.get(p.name) is None]
    if missing:
        there = ", ".join(sorted(name for name, value in values.items() if value is not None))
        raise ConfigError(
            f"{what} takes {', '.join(p.name for p in named)}, and neither the batch nor the model's outputs have "
            f"{', '.join(missing)}. Name its parameters after these: {there}."
        )
    return function(**{p.name: values[p.name] for p in named if p.name in values})


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters
