"""Attention's kernels, all called alike: (queries, keys, values, mask, dropout) → what the queries see."""

import importlib
import importlib.metadata
import logging
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from packaging.specifiers import SpecifierSet
from torch import Tensor
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from collie.module._mask import Mask

# B batch, N query heads, K key/value heads, G query heads a key/value head, H head dim, Q queries, T keys,
# U tokens that are no padding

_logger = logging.getLogger("collie.module")
_ASK = {
    SDPBackend.CUDNN_ATTENTION: can_use_cudnn_attention,
    SDPBackend.FLASH_ATTENTION: can_use_flash_attention,
    SDPBackend.EFFICIENT_ATTENTION: can_use_efficient_attention,
}


def plain(q_BNQH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Mask, dropout: float) -> Tensor:
    """Compute scores and softmax in float32, step by step: what the other kernels are measured by."""
    kv_heads = k_BKTH.shape[1]
    q_BKGQH = q_BNQH.unflatten(1, (kv_heads, -1)).float()
    scores_BKGQT = q_BKGQH @ k_BKTH.float().unsqueeze(2).transpose(-1, -2) / q_BNQH.shape[-1] ** 0.5
    if mask.needs:
        scores_BKGQT = scores_BKGQT.masked_fill(~mask.visible_B1QT.unsqueeze(2), float("-inf"))
    weights_BKGQT = F.dropout(scores_BKGQT.softmax(-1).to(v_BKTH.dtype), dropout, training=dropout > 0)
    return (weights_BKGQT @ v_BKTH.unsqueeze(2)).flatten(1, 2)


@dataclass(frozen=True)
class TorchKernel:
    """torch's scaled_dot_product_attention, held to one of its kernels.

    groups: whether the kernel takes fewer key/value heads than query heads; else they are repeated.
    """

    kernel: SDPBackend
    groups: bool = True

    def __call__(self, q_BNQH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Mask, dropout: float) -> Tensor | None:
        """Return [B, N, Q, H], or None where torch, which has the last word on a GPU, does not take these tensors."""
        group = q_BNQH.shape[1] // k_BKTH.shape[1]
        if group > 1 and not self.groups:
            k_BKTH, v_BKTH = (x.repeat_interleave(group, 1) for x in (k_BKTH, v_BKTH))
            group = 1
        bias = mask.bias(q_BNQH.dtype) if mask.needs - {"causal"} else None
        causal = bias is None and "causal" in mask.needs
        ask = _ASK.get(self.kernel) if q_BNQH.is_cuda else None
        if ask is not None and not ask(SDPAParams(q_BNQH, k_BKTH, v_BKTH, bias, dropout, causal, group > 1)):
            return None
        with sdpa_kernel(self.kernel):
            return F.scaled_dot_product_attention(
                q_BNQH, k_BKTH, v_BKTH, attn_mask=bias, dropout_p=dropout, is_causal=causal, enable_gqa=group > 1
            )


@dataclass(frozen=True)
class FlashKernel:
    """flash_attn_func and flash_attn_varlen_func of the package flash-attn, version 2, or flash-attn-4.

    Both take [B, S, heads, H], or [U, heads, H] with `cu_seqlens`; fewer key/value heads than query heads; for fewer
    queries than keys, queries that are the last of them; and for a window, how many keys before and after a query's
    own it sees. (Read in flash_attn 2.8 and in flash_attn.cute of flash-attn-4 4.0.0b36.)

    distribution, module: what is installed, and what it is imported as.
    versions: those that are used, as pip specifies them.
    requirement: what pip installs one of them by.
    dropout: whether the functions have one.
    """

    distribution: str
    module: str
    versions: str
    requirement: str
    dropout: bool

    def absent(self) -> str | None:
        """Why the package cannot be used here, or None."""
        found = _find(self.distribution, self.module, self.versions, self.requirement)
        return f"{found} (pip install '{self.requirement}')" if isinstance(found, str) else None

    def __call__(self, q_BNQH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Mask, dropout: float) -> Tensor:
        """Return [B, N, Q, H]; zeros on padding."""
        package = _find(self.distribution, self.module, self.versions, self.requirement)
        options: dict[str, Any] = {"causal": True, "deterministic": torch.are_deterministic_algorithms_enabled()}
        if self.dropout:
            options["dropout_p"] = dropout
        if mask.window is not None:
            options["window_size"] = (mask.window - 1, 0)
        q_BQNH, k_BTKH, v_BTKH = (x.transpose(1, 2) for x in (q_BNQH, k_BKTH, v_BKTH))
        if mask.keep_BT is None and mask.packed is None:
            return _output(package.flash_attn_func(q_BQNH, k_BTKH, v_BTKH, **options)).transpose(1, 2)
        rows = mask.rows
        options |= {"cu_seqlens_q": rows.cu_seqlens, "cu_seqlens_k": rows.cu_seqlens}
        options |= {"max_seqlen_q": rows.longest, "max_seqlen_k": rows.longest}
        tokens = [x.flatten(0, 1) for x in (q_BQNH, k_BTKH, v_BTKH)]
        if rows.index_U is None:
            out_UNH = _output(package.flash_attn_varlen_func(*tokens, **options))
            return out_UNH.unflatten(0, q_BQNH.shape[:2]).transpose(1, 2)
        tokens = [x.index_select(0, rows.index_U) for x in tokens]
        out_UNH = _output(package.flash_attn_varlen_func(*tokens, **options))
        whole = out_UNH.new_zeros(q_BQNH.shape[0] * q_BQNH.shape[1], *out_UNH.shape[1:])
        return whole.index_copy(0, rows.index_U, out_UNH).unflatten(0, q_BQNH.shape[:2]).transpose(1, 2)


def _output(returned: Any) -> Tensor:
    """flash-attn-4 returns the scores' logsumexp beside the output."""
    out: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return out


@cache
def _find(distribution: str, module: str, versions: str, requirement: str) -> Any:
    """Return the module, or the reason why it cannot be used; what is installed in vain is warned of, once.

    The distribution is asked for, not the module alone: both packages own parts of `flash_attn`, and builds of
    flash-attn 2 hold an early copy of flash_attn.cute.
    """
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution} is not installed"
    if not SpecifierSet(versions).contains(version, prereleases=True):
        reason = f"{distribution} {version} is installed, and {distribution}{versions} is needed"
        _logger.warning("%s: it is not used. pip install '%s'", reason, requirement)
        return reason
    try:
        found: ModuleType = importlib.import_module(module)
    except Exception as error:  # whatever a package built for another torch or CUDA raises: there are other kernels
        _logger.warning("%s %s is installed, but cannot be imported and is not used: %s", distribution, version, error)
        return f"{distribution} {version} cannot be imported ({error})"
    return found
