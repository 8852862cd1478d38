"""Scaled dot-product attention with grouped key/value heads, and the block around it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn

from collie.interfaces import ConfigError
from collie.module._backends import fused
from collie.module._kernels import plain
from collie.module._mask import Mask
from collie.module._norm import RMSNorm
from collie.module._rope import Rotation

# B batch, S sequence, E hidden, N query heads, K key/value heads, H head dim, Q queries, T keys


class Cache(Protocol):
    """Keys and values of earlier tokens; transformers' caches are such."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append a layer's [B, K, Q, H] and return all of it, [B, K, T, H]."""
        ...


def attention(
    q_BNQH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Mask, *, dropout: float = 0.0, use_flash: bool = True
) -> Tensor:
    """softmax(q·kᵀ/sqrt(H))·v over the keys that `mask` lets a query see, as [B, N, Q, H].

    N is a multiple of K: query heads share key/value heads in blocks of N/K (Ainslie et al. 2023).

    Args:
        q_BNQH, k_BKTH, v_BKTH: queries, keys and values, in one dtype.
        mask: built for this forward's Q and T.
        dropout: probability of dropping an attention weight; 0.0 outside training.
        use_flash: the fastest kernel that can do the call (see `_backends`); False computes scores and softmax in
            float32, step by step.

    Raises:
        ConfigError: `attention_backend` asks for a kernel that cannot do the call.
    """
    if use_flash:
        return fused(q_BNQH, k_BKTH, v_BKTH, mask, dropout)
    return plain(q_BNQH, k_BKTH, v_BKTH, mask, dropout)


class Attention(nn.Module):
    """Self-attention of one layer: project, rotate, append to the cache, attend, project back.

    Args:
        width: E, the hidden size.
        heads: N, query heads.
        kv_heads: K, key/value heads; divides N.
        head_dim: H; N·H need not be E.
        index: the layer's number in the whole model, its place in the cache.
        bias: whether q, k and v have one.
        out_bias: whether the output projection has one.
        fused: one projection `qkv`, its rows [all q; all k; all v], in place of `q`, `k` and `v`.
        qk_norm_eps: of a norm over each head's queries and keys before they are rotated; None for no norm.
        window: how many keys a query sees, counting back from its own; None for all.
        dropout: probability of dropping an attention weight in training.
        use_flash: see `attention`.

    Raises:
        ConfigError: the key/value heads do not divide the query heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        index: int,
        bias: bool = False,
        out_bias: bool = False,
        fused: bool = False,
        qk_norm_eps: float | None = None,
        window: int | None = None,
        dropout: float = 0.0,
        use_flash: bool = True,
    ) -> None:
        super().__init__()
        if heads % kv_heads:
            raise ConfigError(
                f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}: "
                f"each key/value head serves the same number of query heads."
            )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.index = index
        self.window = window
        self.dropout = dropout
        self.use_flash = use_flash
        self.fused = fused
        self._randomness: Callable[[], AbstractContextManager[None]] = nullcontext
        if fused:
            self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_dim, bias=bias)
        else:
            self.q = nn.Linear(width, heads * head_dim, bias=bias)
            self.k = nn.Linear(width, kv_heads * head_dim, bias=bias)
            self.v = nn.Linear(width, kv_heads * head_dim, bias=bias)
        self.q_norm = nn.Identity() if qk_norm_eps is None else RMSNorm(head_dim, qk_norm_eps)
        self.k_norm = nn.Identity() if qk_norm_eps is None else RMSNorm(head_dim, qk_norm_eps)
        self.out = nn.Linear(heads * head_dim, width, bias=out_bias)

    def forward(self, x_BSE: Tensor, rope: Rotation, mask: Mask, cache: Cache | None = None) -> Tensor:
        q_BNSH, k_BKSH, v_BKSH = self.project(x_BSE)
        q_BNSH, k_BKSH = rope(self.q_norm(q_BNSH), self.k_norm(k_BKSH))
        if cache is not None:  # one that knows of the window keeps no more keys than the next query needs
            k_BKSH, v_BKSH = cache.update(k_BKSH, v_BKSH, self.index)
        if self.window is not None:
            mask = mask.within(self.window, k_BKSH.shape[2])
        dropout = self.dropout if self.training else 0.0
        with self._randomness() if dropout else nullcontext():
            mixed_BNSH = attention(q_BNSH, k_BKSH, v_BKSH, mask, dropout=dropout, use_flash=self.use_flash)
        return self.out(mixed_BNSH.transpose(1, 2).flatten(-2))

    def keep_heads(
        self, heads: int, kv_heads: int, randomness: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """Go on with a part of the heads, to which the projections have been cut.

        Args:
            heads, kv_heads: how many are left.
            randomness: makes the context in which attention weights are dropped: those that hold other heads must
                drop other weights.
        """
        self.heads, self.kv_heads, self._randomness = heads, kv_heads, randomness

    def project(self, x_BSE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q_BNSH, k_BKSH, v_BKSH."""
        if self.fused:
            sizes = [n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)]
            parts = self.qkv(x_BSE).split(sizes, -1)
        else:
            parts = self.q(x_BSE), self.k(x_BSE), self.v(x_BSE)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        return q, k, v
