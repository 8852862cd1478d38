"""Parameters that an adapter has brought into a model, which no checkpoint of the model holds.

A layer of an adapter stands in the place of the module that it changes, and keeps that one as its `base_layer`; the
name that a parameter has without adapters leaves this out.
"""

from torch import nn


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
