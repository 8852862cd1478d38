"""Parameters that an adapter has brought into a model, which no checkpoint of the model holds.

A layer of an adapter stands in the place of the module that it changes, and keeps that one as its `base_layer`; the
name that a parameter has without adapters leaves this out.
"""

from collections.abc import Callable

from torch import nn

from collie.parallel._cut import cut_of

Choice = Callable[[str, nn.Parameter], bool]  # of a parameter, and its name in the model before it was split


def mark_added(parameter: nn.Parameter) -> nn.Parameter:
    """Let a parameter say that it belongs to an adapter; return it."""
    parameter.adapter_parameter = True  # type: ignore[attr-defined]
    return parameter


def is_added(parameter: nn.Parameter) -> bool:
    """Return what `mark_added` said."""
    return getattr(parameter, "adapter_parameter", False)


def plain_name(name: str) -> str:
    """Return the name that a parameter or a module has in the model without adapters."""
    return name.replace(".base_layer", "")


def whole_name(name: str, parameter: nn.Parameter) -> str:
    """Return what a model's parameter is called before the model is split, and without adapters."""
    cut = cut_of(parameter)
    return cut.name if cut is not None else plain_name(name)


def of_the_model(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is the model's own and no adapter's."""
    return not is_added(parameter)
