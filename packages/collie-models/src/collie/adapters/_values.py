"""What an adapter's parameters are at first: the same in every layout, as they follow from seed and names."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from collie.adapters._supported import kind_of
from collie.config import CollieConfig
from collie.models import generator_for
from collie.parallel import Fill

_KIND = re.compile(r"\.(lora_A|lora_B|lora_E|ranknum|ia3_l)\.")


def initial_values(peft_config: Any, config: CollieConfig, dtype: torch.dtype, norms: Mapping[str, Tensor]) -> Fill:
    """Return what `collie.parallel.materialise` asks of an adapter's parameters.

    Distributions are PEFT's; numbers are drawn whole, from a generator for each parameter.

    Args:
        peft_config: says how A and B are initialised.
        config: its seed counts.
        dtype: of the values.
        norms: for DoRA those of the rows of W, by the magnitude's name.
    """
    draws: dict[str, Callable[[Tensor, torch.Generator], Any]] = {
        "lora_A": _draw_first(peft_config),
        "lora_B": _draw_second(peft_config),
        "lora_E": lambda whole, generator: whole.zero_(),
        "ranknum": lambda whole, generator: whole.fill_(peft_config.init_r),
        "ia3_l": lambda whole, generator: whole.fill_(1.0),
    }

    def fill(name: str, shape: torch.Size, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        if name in norms:
            return norms[name][start:stop].to(dtype)
        found = _KIND.search(name)
        assert found is not None, f"{name} is of an adapter"
        whole = torch.empty(shape)
        draws[found[1]](whole, generator_for(config.seed, name))
        if columns is not None:
            whole = whole[:, columns[0] : columns[1]]
        return whole.flatten()[start:stop].to(dtype)

    return fill


def _draw_first(peft_config: Any) -> Callable[[Tensor, torch.Generator], Any]:
    if kind_of(peft_config) == "ADALORA":
        return _narrow
    if getattr(peft_config, "init_lora_weights", True) == "gaussian":
        return lambda whole, generator: nn.init.normal_(whole, std=1 / whole.shape[0], generator=generator)
    return _as_torch_draws_linear


def _draw_second(peft_config: Any) -> Callable[[Tensor, torch.Generator], Any]:
    if kind_of(peft_config) == "ADALORA":
        return _narrow
    if getattr(peft_config, "init_lora_weights", True) is False:
        return _as_torch_draws_linear
    return lambda whole, generator: whole.zero_()


def _narrow(whole: Tensor, generator: torch.Generator) -> None:
    nn.init.normal_(whole, std=0.02, generator=generator)


def _as_torch_draws_linear(whole: Tensor, generator: torch.Generator) -> None:
    """Draw from U(−1/√fan_in, 1/√fan_in); a bias, whose fan_in it does not say, is zero."""
    if whole.dim() > 1:
        nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
    else:
        whole.zero_()
