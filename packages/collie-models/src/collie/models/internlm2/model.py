"""InternLM2: LLaMA with one fused projection for queries, keys and values."""

from typing import Any

from collie.models._registry import register
from collie.models.internlm2.configuration import InternLM2Config
from collie.models.internlm2.names import NAMES
from collie.models.internlm2.plan import PLAN
from collie.models.llama import LlamaForCausalLM
from collie.module import Attention


@register
class InternLM2ForCausalLM(LlamaForCausalLM):
    """InternLM2."""

    model_types = ("internlm2",)
    names = NAMES
    plan = PLAN
    architecture = "InternLM2ForCausalLM"
    config_class = InternLM2Config

    def make_attention(self, index: int, **special: Any) -> Attention:
        bias = self.config.bias
        return super().make_attention(index, **{"fused": True, "bias": bias, "out_bias": bias} | special)
