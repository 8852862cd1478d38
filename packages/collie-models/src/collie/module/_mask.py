"""Which keys a query sees: decided once a forward, and dense only where causality alone does not say it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

# B batch, Q queries of this forward, T keys: those in the cache and this forward's


@dataclass(frozen=True)
class Mask:
    """What attention needs to know about visibility.

    visible_B1QT: True where a query sees a key; None where causality alone decides.
    causal: with no dense mask, whether query i sees only keys up to i (False for one query, which sees all keys).
    """

    visible_B1QT: Tensor | None = None
    causal: bool = True
    _narrowed: dict[tuple[int, int], "Mask"] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def build(
        cls,
        attention_mask: Tensor | None,
        queries: int,
        past: int,
        device: torch.device,
        *,
        prefix_B: Tensor | None = None,
    ) -> "Mask":
        """Return the mask of a forward of `queries` new tokens after `past` cached ones.

        No dense mask is made without left padding or a prefix: padding on the right comes after every real query, so
        causality hides it. (That it is so is asked of the device once a forward.) Where one is made, each query sees
        itself, also on padding: a row of only hidden keys would make softmax divide zero by zero.

        Args:
            attention_mask: [B, T], 1 or True for tokens and 0 for padding; or None for no padding.
            queries: number of new tokens, Q.
            past: number of cached tokens; T = past + Q.
            device: where a dense mask is needed.
            prefix_B: [B], how many of a row's first keys every query sees, later ones included.

        Raises:
            ValueError: attention_mask does not cover the cached and the new tokens.
        """
        keys = past + queries
        if attention_mask is not None:
            if attention_mask.dim() != 2 or attention_mask.shape[1] != keys:
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, but {past} cached and {queries} new "
                    f"tokens need [batch, {keys}]."
                )
            attention_mask = attention_mask.to(device=device, dtype=torch.bool)
            if _ends_in_padding(attention_mask, past):
                attention_mask = None
        if queries == 1:
            prefix_B = None  # nothing comes after the only query
        if attention_mask is None and prefix_B is None and (past == 0 or queries == 1):
            return cls(causal=queries > 1)
        query_Q1 = torch.arange(past, keys, device=device)[:, None]
        key_T = torch.arange(keys, device=device)
        visible = (key_T <= query_Q1)[None, None]
        if prefix_B is not None:
            visible = visible | (key_T < prefix_B.to(device)[:, None, None, None])
        if attention_mask is not None:
            visible = (visible & attention_mask[:, None, None, :]) | (key_T == query_Q1)
        return cls(visible, causal=False)

    def within(self, window: int, queries: int, keys: int, device: torch.device) -> "Mask":
        """Return the mask of a layer whose queries see only the last `window` keys, their own among them.

        It is made once for all layers of one kind, and is no dense one where nothing is out of reach.

        Args:
            window: how many keys a query reaches (Beltagy et al. 2020; Jiang et al. 2023).
            queries: Q of this mask.
            keys: how many of the T keys, the last ones, the layer's cache still holds.
            device: where a dense mask is needed.
        """
        visible = self.visible_B1QT
        if keys <= window and (visible is None or visible.shape[-1] == keys):
            return self
        made = self._narrowed.get((window, keys))
        if made is None:
            distance_QT = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
            near = (distance_QT < window)[None, None]
            seen = distance_QT >= 0 if visible is None else visible[..., -keys:]
            made = Mask(seen & near, causal=False)
            self._narrowed[window, keys] = made
        return made


def _ends_in_padding(keep_BT: Tensor, past: int) -> bool:
    """Whether no row has a token after padding, nor padding that a later query sees."""
    if past:
        return bool(keep_BT.all())
    return not bool((keep_BT[:, 1:] & ~keep_BT[:, :-1]).any())
