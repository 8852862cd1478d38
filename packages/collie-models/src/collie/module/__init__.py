"""The blocks that language models are made of, one idea a file: plain PyTorch on one device."""

from collie.module._attention import Attention, attention
from collie.module._backends import attention_backend
from collie.module._by_name import accepts, as_dict, call_by_name, model_inputs
from collie.module._head import LMHead, Vocabulary, WholeVocabulary
from collie.module._loss import IGNORE_INDEX, GPTLMLoss, count_targets
from collie.module._mask import Mask
from collie.module._mlp import MLP, GatedMLP, activation
from collie.module._norm import RMSNorm
from collie.module._packed import Packed, widened, without_first_tokens
from collie.module._rope import Rope, Rotation
from collie.module._token_loss import targets, to_device, token_loss

__all__ = [
    "IGNORE_INDEX",
    "MLP",
    "Attention",
    "GPTLMLoss",
    "GatedMLP",
    "LMHead",
    "Mask",
    "Packed",
    "RMSNorm",
    "Rope",
    "Rotation",
    "Vocabulary",
    "WholeVocabulary",
    "accepts",
    "activation",
    "as_dict",
    "attention",
    "attention_backend",
    "call_by_name",
    "count_targets",
    "model_inputs",
    "targets",
    "to_device",
    "token_loss",
    "widened",
    "without_first_tokens",
]
