"""Qwen2: LLaMA with biases on queries, keys and values alone."""

from typing import Any

from collie.models._registry import register
from collie.models.llama import LlamaForCausalLM
from collie.models.qwen2.plan import PLAN
from collie.module import Attention


@register
class Qwen2ForCausalLM(LlamaForCausalLM):
    """Qwen2; under LLaMA's checkpoint names."""

    model_types = ("qwen2",)
    plan = PLAN
    architecture = "Qwen2ForCausalLM"

    def make_attention(self, index: int, **special: Any) -> Attention:
        return super().make_attention(index, **{"bias": True, "out_bias": False} | special)
