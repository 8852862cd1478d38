"""Which keys a query sees: a description, of which attention makes what its kernel needs, once for all layers."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from collie.module._packed import Packed

# B batch, Q queries of this forward, T keys: those in the cache and this forward's, U tokens that are no padding


@dataclass(frozen=True)
class Rows:
    """A batch's tokens without its padding, laid end to end: what kernels for rows of unequal length read.

    index_U: the tokens' places in [B·T], row by row; None where they are all of it.
    cu_seqlens: int32, where each row begins, and where the last one ends; rows without a token are left out.
    longest: how many tokens the longest row has.
    """

    index_U: Tensor | None
    cu_seqlens: Tensor
    longest: int


@dataclass(frozen=True, eq=False)
class Mask:
    """What attention needs to know about visibility.

    Query i stands at key T - Q + i. It sees that key, those before it and those of the row's prefix, unless they are
    padding, out of the window's reach or of another row of the pack.

    queries, keys: Q and T.
    device: where a dense mask is needed.
    keep_BT: False on padding; None where causality hides all padding.
    gaps: whether a row has padding between tokens.
    prefix_B: how many of a row's first keys every query sees, later ones included.
    window: how many keys a query reaches, counting back from its own; None where all are within reach.
    packed: where several rows are in one sequence.
    """

    queries: int
    keys: int
    device: torch.device
    keep_BT: Tensor | None = None
    gaps: bool = False
    prefix_B: Tensor | None = None
    window: int | None = None
    packed: Packed | None = None
    _narrowed: dict[tuple[int, int], "Mask"] = field(default_factory=dict, repr=False)
    _biases: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls,
        attention_mask: Tensor | None,
        queries: int,
        past: int,
        device: torch.device,
        *,
        prefix_B: Tensor | None = None,
        packed: Packed | None = None,
    ) -> "Mask":
        """Return the mask of a forward of `queries` new tokens after `past` cached ones.

        Padding that ends its row comes after every real query, so causality hides it. (Whether it is so is asked of
        the device once a forward.)

        Args:
            attention_mask: [B, T], 1 or True for tokens and 0 for padding; or None for no padding.
            queries: number of new tokens, Q.
            past: number of cached tokens; T = past + Q.
            device: where a dense mask is needed.
            prefix_B: [B], see `Mask`.
            packed: the rows of a forward over packs. These have no cache.

        Raises:
            ValueError: attention_mask does not cover the cached and the new tokens.
        """
        keys = past + queries
        if queries == 1:
            prefix_B = None  # nothing comes after the only query
        if prefix_B is not None:
            prefix_B = prefix_B.to(device)
        if attention_mask is None:
            return cls(queries, keys, device, prefix_B=prefix_B, packed=packed)
        if attention_mask.dim() != 2 or attention_mask.shape[1] != keys:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but {past} cached and {queries} new "
                f"tokens need [batch, {keys}]."
            )
        keep_BT = attention_mask.to(device=device, dtype=torch.bool)
        matters, gaps = _padding(keep_BT, past, packed)
        if not matters:
            return cls(queries, keys, device, prefix_B=prefix_B, packed=packed)
        return cls(queries, keys, device, keep_BT, gaps, prefix_B, packed=packed)

    def within(self, window: int, keys: int) -> "Mask":
        """Return the mask of a layer whose queries see only the last `window` keys, their own among them.

        It is made once for all layers of one kind.

        Args:
            window: how many keys a query reaches (Beltagy et al. 2020; Jiang et al. 2023).
            keys: how many of the T keys, the last ones, the layer's cache still holds.
        """
        if keys <= window and keys == self.keys:
            return self
        made = self._narrowed.get((window, keys))
        if made is None:
            made = self._narrowed[window, keys] = replace(
                self,
                keys=keys,
                keep_BT=None if self.keep_BT is None else self.keep_BT[:, -keys:],
                prefix_B=None if self.prefix_B is None else self.prefix_B - (self.keys - keys),
                window=window if keys > window else None,
                _narrowed={},
                _biases={},
            )
        return made

    @cached_property
    def needs(self) -> frozenset[str]:
        """What a kernel must know of, unless it takes a dense mask.

        causal: later keys are hidden. offset: and there are more keys than queries, which are the last.
        window: keys are out of reach. padding: there are keys to hide before and between tokens; cached_padding:
        also in a cache; gaps: and a window counts them. prefix: later keys are seen. packed: other rows are hidden.
        """
        cached = self.keys > self.queries
        said = {
            "causal": self.queries > 1,
            "offset": self.queries > 1 and cached,
            "window": self.window is not None,
            "padding": self.keep_BT is not None and not cached,
            "cached_padding": self.keep_BT is not None and cached,
            "gaps": self.gaps and self.window is not None,
            "prefix": self.prefix_B is not None,
            "packed": self.packed is not None,
        }
        return frozenset(need for need, is_so in said.items() if is_so)

    @cached_property
    def visible_B1QT(self) -> Tensor:
        """The dense mask, True where a query sees a key; B is 1 where all rows are alike.

        Each query sees itself, also on padding: a row of only hidden keys would make softmax divide zero by zero.
        """
        query_Q1 = torch.arange(self.keys - self.queries, self.keys, device=self.device)[:, None]
        key_T = torch.arange(self.keys, device=self.device)
        visible = (key_T <= query_Q1)[None, None]
        if self.prefix_B is not None:
            visible = visible | (key_T < self.prefix_B[:, None, None, None])
        if self.window is not None:
            visible = visible & (query_Q1 - key_T < self.window)
        if self.packed is not None:
            row_BT = self.packed.row_BS
            visible = visible & (row_BT[:, None, :, None] == row_BT[:, None, None, :])
        if self.keep_BT is not None:
            visible = (visible & self.keep_BT[:, None, None, :]) | (key_T == query_Q1)
        return visible

    def bias(self, dtype: torch.dtype) -> Tensor:
        """Return the dense mask as what is added to scores, 0 or -inf: [B, 1, Q, T], with rows aligned to 8 numbers.

        Layers share it. Given `visible_B1QT`, or rows that are not aligned, torch would make and keep one for each.
        """
        made = self._biases.get(dtype)
        if made is None:
            *outer, keys = self.visible_B1QT.shape
            made = torch.zeros(*outer, -(-keys // 8) * 8, dtype=dtype, device=self.device)[..., :keys]
            self._biases[dtype] = made.masked_fill_(~self.visible_B1QT, float("-inf"))
        return made

    @cached_property
    def rows(self) -> Rows:
        """The tokens without padding, of a mask that has some, or of packs."""
        if self.keep_BT is None:
            assert self.packed is not None
            return Rows(None, self.packed.cu_seqlens, self.packed.longest)
        if self.packed is None:
            counts = self.keep_BT.sum(1)
        else:
            before = F.pad(self.keep_BT.flatten().cumsum(0), (1, 0))
            counts = before[self.packed.cu_seqlens.long()].diff()
        lengths = [length for length in counts.tolist() if length]
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device)
        return Rows(self.keep_BT.flatten().nonzero().squeeze(1), starts, max(lengths))


def _padding(keep_BT: Tensor, past: int, packed: Packed | None) -> tuple[bool, bool]:
    """Whether padding comes before a query that is a token, and whether it lies between tokens; of one row."""
    if past:
        return not bool(keep_BT.all()), True
    begins_BT = keep_BT[:, 1:] & ~keep_BT[:, :-1]  # a token after padding
    if packed is None:
        runs = begins_BT.sum(1) + keep_BT[:, 0]
    else:
        first_BT = F.pad(packed.row_BS[:, 1:] != packed.row_BS[:, :-1], (1, 0), value=True)
        begins_BT = begins_BT & ~first_BT[:, 1:]
        starts_BT = F.pad(begins_BT, (1, 0)) | (keep_BT & first_BT)
        numbers = packed.row_BS.flatten()
        runs = numbers.new_zeros(packed.rows).index_add(0, numbers, starts_BT.flatten().to(numbers.dtype))
    matters, gaps = torch.stack((begins_BT.any(), (runs > 1).any())).tolist()
    return matters, gaps
