"""Qwen3: LLaMA with a norm over each head's queries and keys."""

from typing import Any

from collie.models._registry import register
from collie.models.llama import LlamaForCausalLM
from collie.models.qwen3.names import NAMES
from collie.models.qwen3.plan import PLAN
from collie.module import Attention


@register
class Qwen3ForCausalLM(LlamaForCausalLM):
    """Qwen3; its heads together may be wider than the hidden size."""

    model_types = ("qwen3",)
    names = NAMES
    plan = PLAN
    architecture = "Qwen3ForCausalLM"

    def make_attention(self, index: int, **special: Any) -> Attention:
        return super().make_attention(index, **{"qk_norm_eps": self.config.rms_norm_eps} | special)
