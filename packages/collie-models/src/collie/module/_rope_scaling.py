"""How configs lengthen the context of a rotary embedding: what each `rope_scaling` makes of theta."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collie.interfaces import ConfigError

# R rotated dims of a head


@dataclass(frozen=True)
class Stretch:
    """Dynamic scaling: theta grows with the length of a forward that is beyond the original context.

    "NTK-aware" interpolation (bloc97 and emozilla): the slowest pair turns as far over `factor`·length - (factor - 1)·
    original positions as it did over the original ones, the fastest as fast as before.
    """

    dim: int
    base: float
    factor: float
    original: int

    def frequencies(self, length: Tensor) -> Tensor:
        """Return those for numbers of positions, […] → […, R/2], on their device, without asking it for them."""
        longer = self.factor * length.clamp(min=self.original) / self.original - (self.factor - 1)
        base = self.base * longer ** (self.dim / (self.dim - 2))
        return _frequencies(self.dim, base.unsqueeze(-1), length.device)


@dataclass(frozen=True)
class Turning:
    """How fast the pairs of dimensions turn.

    frequencies: radians a position, float32, R/2 of them; under dynamic scaling those of the original context.
    amplitude: what cos and sin are multiplied by.
    stretch: dynamic scaling, where that is what the config asks for.
    """

    frequencies: Tensor
    amplitude: float = 1.0
    stretch: Stretch | None = None


def turning(dim: int, base: float, scaling: Mapping[str, Any], longest: int | None) -> Turning:
    """Return how a config's rotary embedding turns.

    Args:
        dim: R
        base: theta
        scaling: rope_scaling or rope_parameters; empty for none.
        longest: the config's max_position_embeddings, where it has one.

    Raises:
        ConfigError: scaling is of an unknown type or lacks a number.
    """
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in _KINDS:
        raise ConfigError(
            f"rope_scaling of type {kind!r} is not supported; supported are {', '.join(_KINDS)}. "
            f"Set model_config.rope_scaling to one of these, or to None for contexts no longer than in training."
        )
    if longest is not None:
        scaling = {"max_position_embeddings": longest, "original_max_position_embeddings": longest} | dict(scaling)
    try:
        return _KINDS[kind](dim, base, scaling)
    except KeyError as missing:
        raise ConfigError(
            f"rope_scaling of type {kind!r} needs the number {missing}, and the config has none."
        ) from None


def _frequencies(dim: int, base: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
    # float32, as the reference implementations have it: checkpoints were trained with these roundings
    exponent = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    return 1.0 / (base**exponent)


def _default(dim: int, base: float, scaling: Mapping[str, Any]) -> Turning:
    return Turning(_frequencies(dim, base))


def _linear(dim: int, base: float, scaling: Mapping[str, Any]) -> Turning:
    """Interpolate positions: a context `factor` times as long turns as far (Chen et al. 2023)."""
    return Turning(_frequencies(dim, base) / scaling["factor"])


def _dynamic(dim: int, base: float, scaling: Mapping[str, Any]) -> Turning:
    stretch = Stretch(dim, base, scaling["factor"], scaling["max_position_embeddings"])
    return Turning(_frequencies(dim, base), stretch=stretch)


def _yarn(dim: int, base: float, scaling: Mapping[str, Any]) -> Turning:
    """Interpolate slow pairs, keep fast ones, and sharpen the softmax (Peng et al. 2023, "YaRN", §3.2 to §3.4)."""
    original = scaling["original_max_position_embeddings"]
    factor = scaling["factor"] or scaling["max_position_embeddings"] / original

    def pair_that_turns(times: float) -> float:  # over the original context; a real number of pairs
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    first, last = (pair_that_turns(scaling.get(key) or times) for key, times in (("beta_fast", 32), ("beta_slow", 1)))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - first) / (last - first or 0.001)
    interpolated, frequencies = ramp.clamp(0, 1), _frequencies(dim, base)
    return Turning(
        frequencies / factor * interpolated + frequencies * (1 - interpolated), amplitude=_amplitude(factor, scaling)
    )


def _amplitude(factor: float, scaling: Mapping[str, Any]) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def sharpened(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return sharpened(scaling["mscale"]) / sharpened(scaling["mscale_all_dim"])
    return sharpened(1.0)


def _llama3(dim: int, base: float, scaling: Mapping[str, Any]) -> Turning:
    """Interpolate only wavelengths that are long for the original context, with a ramp between (Llama 3.1)."""
    frequencies = _frequencies(dim, base)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = frequencies * scaling["original_max_position_embeddings"] / (2 * math.pi)  # over the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return Turning((1 - kept) * frequencies / scaling["factor"] + kept * frequencies)


_KINDS: dict[str, Callable[[int, float, Mapping[str, Any]], Turning]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
}
