"""Feed-forward blocks, and the activations that configs name."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from collie.interfaces import ConfigError, nearest

# E hidden, F intermediate
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "gelu_new": partial(F.gelu, approximate="tanh"),  # x/2·(1 + tanh(sqrt(2/π)(x + 0.044715x³))), as GPT-2 has it
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation that a config names.

    Raises:
        ConfigError: nothing has that name here.
    """
    if name not in _ACTIVATIONS:
        near = nearest(name, _ACTIVATIONS)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ConfigError(f"Unknown activation {name!r} in the model's config; known: {', '.join(_ACTIVATIONS)}.{hint}")
    return _ACTIVATIONS[name]


class MLP(nn.Module):
    """down(act(up(x))): E → F → E."""

    def __init__(self, width: int, inner: int, act: str, *, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)
        self.act = activation(act)

    def forward(self, x_BSE: Tensor) -> Tensor:
        return self.down(self.act(self.up(x_BSE)))


class GatedMLP(nn.Module):
    """down(act(gate(x)) · up(x)): E → F → E (Shazeer 2020, "GLU variants improve transformer").

    fused: one projection `gate_up`, its rows [gate; up], in place of `gate` and `up`.
    """

    def __init__(self, width: int, inner: int, act: str, *, bias: bool = False, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused
        if fused:
            self.gate_up = nn.Linear(width, 2 * inner, bias=bias)
        else:
            self.gate = nn.Linear(width, inner, bias=bias)
            self.up = nn.Linear(width, inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)
        self.act = activation(act)

    def forward(self, x_BSE: Tensor) -> Tensor:
        gate_BSF, up_BSF = self.gate_up(x_BSE).chunk(2, -1) if self.fused else (self.gate(x_BSE), self.up(x_BSE))
        return self.down(self.act(gate_BSF) * up_BSF)
