"""Rotary position embedding: frequencies from the config, tables a device, rotations a forward.

A `Rope` belongs to a model and is no module: it has no parameters and no buffers, so nothing of it is saved, moved
or partitioned. `Rope.at` gives the `Rotation` of one forward's positions, which every layer then applies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from collie.interfaces import ConfigError
from collie.module._packed import Packed
from collie.module._rope_scaling import turning

# B batch, S sequence, N query heads, K key/value heads, H head dim, R rotated dims of a head, P pairs of them (R/2),
# L positions of a table


@dataclass(frozen=True)
class Rotation:
    """The rotation of one forward's queries and keys, by their positions (Su et al. 2021, "RoFormer").

    cos_B1SR, sin_B1SR: float32, broadcast over heads (B is 1 where all rows have the same positions).
    interleaved: which pairs of dimensions turn together: (2i, 2i+1) as in GPT-J, else (i, i+R/2) as in LLaMA.
    """

    cos_B1SR: Tensor
    sin_B1SR: Tensor
    interleaved: bool

    @classmethod
    def from_angles(cls, angles_BSP: Tensor, interleaved: bool, amplitude: float = 1.0) -> "Rotation":
        """Return the rotation by an angle for each of the R/2 pairs, with vectors lengthened by `amplitude`."""
        cos_B1SR, sin_B1SR = _both_sides(angles_BSP, interleaved, amplitude)
        return cls(cos_B1SR.unsqueeze(1), sin_B1SR.unsqueeze(1), interleaved)

    def padded(self, rows: int, length: int) -> "Rotation":
        """Return it for more rows and positions, added behind its own; by these nothing is turned.

        Where one row stands for all, it goes on doing so.
        """
        own, behind = self.cos_B1SR.shape[0], length - self.cos_B1SR.shape[2]
        widths = [0, 0, 0, behind, 0, 0, 0, rows - own if own > 1 else 0]
        return replace(
            self, cos_B1SR=F.pad(self.cos_B1SR, widths, value=1.0), sin_B1SR=F.pad(self.sin_B1SR, widths, value=0.0)
        )

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
        scaling: the config's rope_scaling (or rope_parameters): rope_type 'default', 'linear', 'dynamic', 'yarn' or
            'llama3' and its numbers; None for default.
        longest: the config's max_position_embeddings, which some scalings need.

    Raises:
        ConfigError: dim is odd, or scaling is of an unknown type or lacks a number.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        *,
        interleaved: bool = False,
        scaling: Mapping[str, Any] | None = None,
        longest: int | None = None,
    ) -> None:
        if dim < 2 or dim % 2:
            raise ConfigError(f"Rotary embedding turns pairs of dimensions, but the config gives it {dim}.")
        self.interleaved = interleaved
        made = turning(dim, base, scaling or {}, longest)
        self.frequencies, self.amplitude, self._stretch = made.frequencies, made.amplitude, made.stretch
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._copies: dict[torch.device, Tensor] = {}  # of the frequencies

    @classmethod
    def from_config(cls, config: Any, dim: int, *, interleaved: bool = False) -> "Rope":
        """Read theta and scaling from a model's config, in the spelling of transformers 4 or 5."""
        base, scaling = rope_settings(config)
        longest = getattr(config, "max_position_embeddings", None)
        return cls(dim, base, interleaved=interleaved, scaling=scaling, longest=longest)

    def at(self, positions_BS: Tensor) -> Rotation:
        """Return the rotation for positions given one by one (integers).

        They are not looked up: how long a table they need is known only to the device, and asking it would stop a
        generation loop at every token. Dynamic scaling takes the last of them for the length, over all rows.
        """
        frequencies_P = self._stretch.frequencies(positions_BS.max() + 1) if self._stretch is not None else None
        return Rotation.from_angles(self.angles(positions_BS, frequencies_P), self.interleaved, self.amplitude)

    def of_rows(self, positions_BS: Tensor, packed: Packed) -> Rotation:
        """Return the rotation of packed rows: `at`, but dynamic scaling takes each row's own length."""
        if self._stretch is None:
            return self.at(positions_BS)
        frequencies_RP = self._stretch.frequencies(packed.lengths(positions_BS))
        angles_BSP = self.angles(positions_BS, frequencies_RP[packed.row_BS])
        return Rotation.from_angles(angles_BSP, self.interleaved, self.amplitude)

    def span(self, start: int, stop: int, device: torch.device) -> Rotation:
        """Return the rotation for positions start, …, stop - 1 in every row."""
        if self._stretch is not None and stop > self._stretch.original:  # each length has frequencies of its own
            return self.at(torch.arange(start, stop, device=device)[None])
        cos_LR, sin_LR = self._table(stop, device)
        return Rotation(cos_LR[None, None, start:stop], sin_LR[None, None, start:stop], self.interleaved)

    def angles(self, positions: Tensor, frequencies_P: Tensor | None = None) -> Tensor:
        """Return positions × frequencies, float32: […, P]. These are the rope's own unless given, [P] or […, P]."""
        if frequencies_P is None:
            frequencies_P = self._copies.get(positions.device)
        if frequencies_P is None:
            with torch.inference_mode(False):
                frequencies_P = self._copies[positions.device] = self.frequencies.to(positions.device)
        return positions.unsqueeze(-1).float() * frequencies_P

    def _table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        made = self._tables.get(device)
        if made is None or made[0].shape[0] < length:
            # outside inference mode, or a table made while generating could not be used in training
            with torch.inference_mode(False), torch.no_grad():
                angles_LP = self.angles(torch.arange(max(64, 1 << (length - 1).bit_length()), device=device))
                made = _both_sides(angles_LP, self.interleaved, self.amplitude)
                self._tables[device] = made
        return made

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": {}, "_copies": {}}  # they are made again where they are used


def _both_sides(angles: Tensor, interleaved: bool, amplitude: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin for both dimensions of each pair: […, P] → […, R] twice."""
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat((angles, angles), -1)
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if amplitude == 1.0 else (cos * amplitude, sin * amplitude)


def rope_settings(config: Any) -> tuple[float, dict[str, Any]]:
    """Return theta and the scaling of a config.

    transformers 4 writes rope_theta and rope_scaling (None, or a dict with `type` or `rope_type`); transformers 5
    writes rope_parameters, with both in it.
    """
    scaling = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    base = scaling.pop("rope_theta", None) or getattr(config, "rope_theta", None) or 10000.0
    return float(base), scaling
