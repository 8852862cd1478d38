"""The blocks that language models are made of, one idea a file: plain PyTorch on one device."""

from collie.module._attention import Attention, attention
from collie.module._head import LMHead
from collie.module._loss import GPTLMLoss, count_targets
from collie.module._mask import Mask
from collie.module._mlp import MLP, GatedMLP, activation
from collie.module._norm import RMSNorm
from collie.module._rope import Rope, Rotation

__all__ = [
    "MLP",
    "Attention",
    "GPTLMLoss",
    "GatedMLP",
    "LMHead",
    "Mask",
    "RMSNorm",
    "Rope",
    "Rotation",
    "activation",
    "attention",
    "count_targets",
]
