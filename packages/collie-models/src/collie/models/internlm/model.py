"""InternLM: LLaMA with biases around attention, under LLaMA's checkpoint names."""

from typing import Any

from collie.config import CollieConfig
from collie.models._registry import register
from collie.models.internlm.configuration import InternLMConfig
from collie.models.internlm.plan import PLAN
from collie.models.llama import LlamaForCausalLM
from collie.models.llama.model import head_dim
from collie.module import Attention, Rope


@register
class InternLMForCausalLM(LlamaForCausalLM):
    """InternLM 7B and 20B."""

    model_types = ("internlm",)
    plan = PLAN
    architecture = "InternLMForCausalLM"
    config_class = InternLMConfig

    def __init__(self, config: CollieConfig) -> None:
        super().__init__(config)
        if rotary := self.config.rotary:
            kind = rotary.get("type", "origin")
            scaling = {"type": "default" if kind == "origin" else kind, "factor": rotary.get("scaling_factor", 1.0)}
            longest = self.config.max_position_embeddings
            self.rope = Rope(head_dim(self.config), rotary.get("base", 10000.0), scaling=scaling, longest=longest)

    def make_attention(self, index: int, **special: Any) -> Attention:
        bias = self.config.bias
        return super().make_attention(index, **{"bias": bias, "out_bias": bias} | special)
