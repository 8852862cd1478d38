"""Stochastic rounding: steps far smaller than the distance between two bfloat16 numbers are kept on average.

A value between two neighbours becomes the upper one with the probability of its distance from the lower one, so the
expected value of what is stored is the value itself (Gupta et al. 2015, "Deep Learning with Limited Numerical
Precision", section 3; for bfloat16 weights Zamirai et al. 2021, "Revisiting BFloat16 Training").
"""

import hashlib

import torch
from torch import Tensor, nn

from collie.parallel import Shard, cut_of

_DROPPED_BITS = 16  # a bfloat16 is the upper half of a float32


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 values to bfloat16, up or down by chance; `values` are overwritten. Infinities and NaN stay."""
    bits = values.view(torch.int32)
    chance = torch.randint(1 << _DROPPED_BITS, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    bits.add_(chance).bitwise_and_(-(1 << _DROPPED_BITS))
    return values.to(torch.bfloat16)


class AlikeDraws:
    """Generators for rounding that draw the same on ranks that hold the same elements, in the same step.

    So copies stay equal: of replicas, of replicated and shared tensor-parallel parts, of tied weights on two stages.
    What is drawn depends on the parameter's name, its part and its step alone, not on torch's own generators.

    Args:
        names: of the parameters, in the whole model.
    """

    def __init__(self, names: dict[nn.Parameter, str]) -> None:
        self._names = names
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, shard: Shard, step: int) -> torch.Generator:
        """Return the generator for one update of a shard."""
        device, cut = shard.data.device, cut_of(shard.parameter)
        part = shard.topology.tp_rank // cut.copies if cut is not None else 0
        piece = shard.topology.dp_rank if shard.partitioned else 0
        words = f"{self._names[shard.parameter]} {part} {piece} {step}"
        seed = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=7).digest())
        return self._generators.setdefault(device, torch.Generator(device)).manual_seed(seed)
