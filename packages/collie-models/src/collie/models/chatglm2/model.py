"""ChatGLM2: LLaMA with fused projections, of which half a head's dimensions turn, in pairs of neighbours."""

from typing import Any

from collie.config import CollieConfig
from collie.models._registry import register
from collie.models._steps import require_values
from collie.models.chatglm2.configuration import ChatGLM2Config
from collie.models.chatglm2.names import NAMES
from collie.models.chatglm2.plan import PLAN
from collie.models.llama import LlamaForCausalLM
from collie.module import Attention, GatedMLP, Rope


@register
class ChatGLM2ForCausalLM(LlamaForCausalLM):
    """ChatGLM2 and ChatGLM3."""

    model_types = ("chatglm",)
    marks = ("multi_query_attention",)  # "chatglm" is also the type of ChatGLM, which shares no keys and values
    names = NAMES
    plan = PLAN
    architecture = "ChatGLMModel"
    config_class = ChatGLM2Config

    def __init__(self, config: CollieConfig) -> None:
        require_values(
            config.model_config,
            multi_query_attention=True,
            rmsnorm=True,
            post_layer_norm=True,
            apply_residual_connection_post_layernorm=False,
            rope_ratio=1,  # checkpoints mean different things by it
            pre_seq_len=None,
        )
        super().__init__(config)
        self.rope = Rope.from_config(self.config, self.config.kv_channels // 2, interleaved=True)

    def make_attention(self, index: int, **special: Any) -> Attention:
        model = self.config
        own = {"fused": True, "bias": model.add_qkv_bias or model.add_bias_linear, "out_bias": model.add_bias_linear}
        return super().make_attention(index, **own | special)

    def make_mlp(self, **special: Any) -> GatedMLP:
        return super().make_mlp(**{"fused": True, "bias": self.config.add_bias_linear} | special)
