"""Where a row's context ends and its answer begins, and the two position channels that follow from it.

A row is: padding, context with [gMASK] or [MASK] in it, bos, answer. Every token sees the whole context. The first
channel counts the context's tokens and then stays at the mask's place; the second is 0 in the context and counts the
answer's tokens, bos being 1 (Du et al. 2022, §2.1).
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache

# B batch, S new tokens, T cached and new tokens

_NEVER = 2**31 - 1  # the place of a token that a row does not have


@dataclass(frozen=True)
class Context:
    """Places of a row's landmarks, counted over its padding and cached tokens, too; each [B].

    start_B: the first token that is no padding.
    gmask_B, mask_B, bos_B: the first token of that kind.
    """

    start_B: Tensor
    gmask_B: Tensor
    mask_B: Tensor
    bos_B: Tensor

    @classmethod
    def find(cls, ids_BS: Tensor, attention_mask: Tensor | None, past: int, config: Any) -> "Context":
        """Read it off new tokens after `past` cached ones; attention_mask is [B, T] or None."""

        def first(there: Tensor, offset: int) -> Tensor:
            return torch.where(there.any(1), there.int().argmax(1) + offset, _NEVER)

        start_B = ids_BS.new_zeros(ids_BS.shape[0])
        if attention_mask is not None:
            start_B = first(attention_mask.to(ids_BS.device).bool(), 0)
        tokens = (config.gmask_token_id, config.mask_token_id, config.bos_token_id)
        return cls(start_B, *(first(ids_BS == token, past) for token in tokens))

    def followed_by(self, later: "Context") -> "Context":
        """Return the context of rows of which `later` was read off the next tokens."""
        pairs = ((self.gmask_B, later.gmask_B), (self.mask_B, later.mask_B), (self.bos_B, later.bos_B))
        return Context(self.start_B, *(torch.minimum(*pair) for pair in pairs))

    @property
    def prefix_B(self) -> Tensor:
        """How many first tokens every token sees. None where there is no bos: such a row is plain text."""
        return torch.where(self.bos_B == _NEVER, 0, self.bos_B)

    def positions(self, start: int, stop: int) -> Tensor:
        """Return both channels for the places start, …, stop - 1: [B, 2, stop - start]. On padding they are 0.

        An answer to a context without a mask stands after its last token.
        """
        place = torch.arange(start, stop, device=self.bos_B.device)
        first_B, gmask_B, mask_B, bos_B = (x[:, None] for x in (self.start_B, self.gmask_B, self.mask_B, self.bos_B))
        masked_B = torch.where(gmask_B < bos_B, gmask_B, torch.where(mask_B < bos_B, mask_B, bos_B - 1))
        in_context = torch.where(place < bos_B, place, masked_B) - first_B
        return torch.stack((in_context, place - bos_B + 1), 1).clamp(min=0)


class Contexts:
    """The contexts of rows whose first tokens are in a cache, for as long as there is the cache.

    A forward over later tokens does not see the context, and a cache has no place for it.
    """

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Cache, Context] = WeakKeyDictionary()

    def get(self, cache: Cache | None) -> Context | None:
        return self._of.get(cache) if cache is not None else None

    def keep(self, cache: Cache | None, context: Context) -> None:
        if cache is not None:
            self._of[cache] = context

    def __reduce__(self) -> tuple[type["Contexts"], tuple[()]]:
        return Contexts, ()  # a copied or pickled model has seen no cache
