"""Rotary position embedding: frequencies from the config, tables a device, rotations a forward.

A `Rope` belongs to a model and is no module: it has no parameters and no buffers, so nothing of it is saved, moved
or partitioned. `Rope.at` gives the `Rotation` of one forward's positions, which every layer then applies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collie.interfaces import ConfigError

# B batch, S sequence, N query heads, K key/value heads, H head dim, R rotated dims of a head, P positions


@dataclass(frozen=True)
class Rotation:
    """The rotation of one forward's queries and keys, by their positions (Su et al. 2021, "RoFormer").

    cos_B1SR, sin_B1SR: float32, broadcast over heads (B is 1 where all rows have the same positions).
    interleaved: which pairs of dimensions turn together: (2i, 2i+1) as in GPT-J, else (i, i+R/2) as in LLaMA.
    """

    cos_B1SR: Tensor
    sin_B1SR: Tensor
    interleaved: bool

    def __call__(self, q_BNSH: Tensor, k_BKSH: Tensor) -> tuple[Tensor, Tensor]:
        return self._turn(q_BNSH), self._turn(k_BKSH)

    def _turn(self, x_BNSH: Tensor) -> Tensor:
        """Rotate the first R dimensions in float32 and leave the others as they are."""
        rotated = self.cos_B1SR.shape[-1]
        x_BNSR = x_BNSH[..., :rotated]
        turned = (x_BNSR * self.cos_B1SR + self._quarter_turn(x_BNSR) * self.sin_B1SR).to(x_BNSH.dtype)
        return turned if rotated == x_BNSH.shape[-1] else torch.cat((turned, x_BNSH[..., rotated:]), -1)

    def _quarter_turn(self, x_BNSR: Tensor) -> Tensor:
        if self.interleaved:
            return torch.stack((-x_BNSR[..., 1::2], x_BNSR[..., ::2]), -1).flatten(-2)
        first, second = x_BNSR.chunk(2, -1)
        return torch.cat((-second, first), -1)


class Rope:
    """Frequencies of a model's rotary embedding, and its cos/sin tables: made once a device, grown by doubling.

    Args:
        dim: R, how many dimensions of a head turn; even.
        base: theta, the longest wavelength over 2π.
        interleaved: see `Rotation`.
        scaling: the config's rope_scaling (or rope_parameters): rope_type 'default', 'linear' or 'llama3' and its
            numbers; None for default.

    Raises:
        ConfigError: dim is odd, or scaling is of an unknown type or lacks a number.
    """

    def __init__(
        self, dim: int, base: float = 10000.0, *, interleaved: bool = False, scaling: Mapping[str, Any] | None = None
    ) -> None:
        if dim < 2 or dim % 2:
            raise ConfigError(f"Rotary embedding turns pairs of dimensions, but the config gives it {dim}.")
        self.interleaved = interleaved
        # float32, as the reference implementations have it: checkpoints were trained with these roundings
        exponent = torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim
        self.frequencies = _scaled(1.0 / (base**exponent), scaling or {})
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._copies: dict[torch.device, Tensor] = {}  # of the frequencies

    @classmethod
    def from_config(cls, config: Any, dim: int, *, interleaved: bool = False) -> "Rope":
        """Read theta and scaling from a model's config, in the spelling of transformers 4 or 5."""
        base, scaling = rope_settings(config)
        return cls(dim, base, interleaved=interleaved, scaling=scaling)

    def at(self, positions_BS: Tensor) -> Rotation:
        """Return the rotation for positions given one by one (integers).

        They are not looked up: how long a table they need is known only to the device, and asking it would stop a
        generation loop at every token.
        """
        angles_BSR = self._angles(positions_BS)
        return Rotation(angles_BSR.cos().unsqueeze(1), angles_BSR.sin().unsqueeze(1), self.interleaved)

    def span(self, start: int, stop: int, device: torch.device) -> Rotation:
        """Return the rotation for positions start, …, stop - 1 in every row."""
        cos_PR, sin_PR = self._table(stop, device)
        return Rotation(cos_PR[None, None, start:stop], sin_PR[None, None, start:stop], self.interleaved)

    def _table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        made = self._tables.get(device)
        if made is None or made[0].shape[0] < length:
            # outside inference mode, or a table made while generating could not be used in training
            with torch.inference_mode(False), torch.no_grad():
                angles_PR = self._angles(torch.arange(max(64, 1 << (length - 1).bit_length()), device=device))
                made = self._tables[device] = (angles_PR.cos(), angles_PR.sin())
        return made

    def _angles(self, positions: Tensor) -> Tensor:
        """Return positions × frequencies, float32, for both dimensions of each pair: […, R]."""
        frequencies = self._copies.get(positions.device)
        if frequencies is None:
            with torch.inference_mode(False):
                frequencies = self._copies[positions.device] = self.frequencies.to(positions.device)
        angles = positions.unsqueeze(-1).float() * frequencies
        return angles.repeat_interleave(2, -1) if self.interleaved else torch.cat((angles, angles), -1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": {}, "_copies": {}}  # they are made again where they are used


def rope_settings(config: Any) -> tuple[float, dict[str, Any]]:
    """Return theta and the scaling of a config.

    transformers 4 writes rope_theta and rope_scaling (None, or a dict with `type` or `rope_type`); transformers 5
    writes rope_parameters, with both in it.
    """
    scaling = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    base = scaling.pop("rope_theta", None) or getattr(config, "rope_theta", None) or 10000.0
    return float(base), scaling


def _scaled(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    known = {"default": lambda f, s: f, "linear": _linear, "llama3": _llama3}
    if kind not in known:
        raise ConfigError(
            f"rope_scaling of type {kind!r} is not supported; supported are {', '.join(known)}. "
            f"Set model_config.rope_scaling to one of these, or to None for contexts no longer than in training."
        )
    try:
        return known[kind](frequencies, scaling)
    except KeyError as missing:
        raise ConfigError(
            f"rope_scaling of type {kind!r} needs the number {missing}, and the config has none."
        ) from None


def _linear(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Interpolate positions: a context `factor` times as long turns as far (Chen et al. 2023)."""
    return frequencies / scaling["factor"]


def _llama3(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Interpolate only wavelengths that are long for the original context, with a ramp between (Llama 3.1)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = frequencies * scaling["original_max_position_embeddings"] / (2 * math.pi)  # over the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling["factor"] + kept * frequencies
