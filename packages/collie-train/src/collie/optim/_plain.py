"""What Adan, Lion and SophiaG share: torch optimizers that step over gradients which a backward pass has left."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from collie.interfaces import ConfigError


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """Call a step's closure, which makes loss and gradients, with gradients on; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def dense_grad(parameter: Tensor) -> Tensor:
    """Return a parameter's gradient.

    Raises:
        ConfigError: it is sparse.
    """
    grad = parameter.grad
    assert grad is not None
    if grad.is_sparse:
        raise ConfigError("sparse gradients are not taken by this optimizer. Make the embedding with sparse=False.")
    return grad


def refuse_values(betas: tuple[float, ...], **least_zero: float) -> None:
    """Refuse decay rates outside [0, 1) and numbers below 0.

    Raises:
        ConfigError: with the value.
    """
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"betas={betas} must each be in [0, 1).")
    for name, value in least_zero.items():
        if not value >= 0:
            raise ConfigError(f"{name}={value!r} must not be negative.")
