"""Calling models and losses by what they accept."""

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
    """The tensors of `batch` that the model's forward takes; labels are left out."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor) and key != "labels"}
    parameters = _parameters(model.forward)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return tensors
    return {key: value for key, value in tensors.items() if key in parameters}


def as_dict(outputs: Any) -> dict[str, Any]:
    """What a model returned, by name; a bare tensor is its logits."""
    if isinstance(outputs, Tensor):
        return {"logits": outputs}
    return dict(outputs) if isinstance(outputs, Mapping) else dict(vars(outputs))


def call_by_name(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Call `function` with those of `values` that its parameters name.

    Raises:
        ConfigError: a parameter without a default is not among `values`.
    """
    target = function.forward if isinstance(function, nn.Module) else function
    named = {
        name: parameter
        for name, parameter in _parameters(target).items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    missing = [name for name, parameter in named.items() if parameter.default is parameter.empty and name not in values]
    if missing:
        raise ConfigError(
            f"loss_fn takes {', '.join(named)}, and neither batch nor model outputs have {', '.join(missing)}: "
            f"name its parameters after these: {', '.join(values)}."
        )
    return function(**{name: values[name] for name in named if name in values})


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters
