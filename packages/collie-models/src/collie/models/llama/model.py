"""LLaMA: pre-norm residual blocks of grouped-query attention and a gated MLP."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig

from collie.config import CollieConfig
from collie.models._registry import register
from collie.models.base import CollieModelForCausalLM
from collie.models.llama.names import NAMES
from collie.models.llama.plan import PLAN
from collie.module import Attention, GatedMLP, LMHead, Mask, RMSNorm, Rope, Rotation

# B batch, S sequence, E hidden


class LlamaLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: CollieConfig, index: int) -> None:
        super().__init__()
        model = config.model_config
        self.attention_norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.attention = Attention(
            model.hidden_size,
            model.num_attention_heads,
            kv_heads(model),
            head_dim(model),
            index=index,
            bias=getattr(model, "attention_bias", False),
            out_bias=getattr(model, "attention_bias", False),
            dropout=config.dropout,
            use_flash=config.use_flash,
        )
        self.mlp_norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.mlp = GatedMLP(
            model.hidden_size, model.intermediate_size, model.hidden_act, bias=getattr(model, "mlp_bias", False)
        )
        self.dropout = config.dropout

    def forward(self, x_BSE: Tensor, rope: Rotation, mask: Mask, cache: Cache | None = None) -> Tensor:
        mixed_BSE = self.attention(self.attention_norm(x_BSE), rope, mask, cache)
        x_BSE = x_BSE + F.dropout(mixed_BSE, self.dropout, self.training)
        return x_BSE + F.dropout(self.mlp(self.mlp_norm(x_BSE)), self.dropout, self.training)


@register
class LlamaForCausalLM(CollieModelForCausalLM):
    """LLaMA, with grouped heads, biases, scaled rotary embedding and a tied head where the config has them."""

    model_types = ("llama",)
    names = NAMES
    plan = PLAN
    architecture = "LlamaForCausalLM"

    def __init__(self, config: CollieConfig) -> None:
        super().__init__(config)
        model = self.config
        self.embed = nn.Embedding(model.vocab_size, model.hidden_size)
        self.layers = nn.ModuleDict({str(i): LlamaLayer(config, i) for i in range(model.num_hidden_layers)})
        self.norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.head = LMHead(model.hidden_size, model.vocab_size, bias=False)
        self.rope = Rope.from_config(model, head_dim(model))
        self.tie_weights()


def head_dim(model: PretrainedConfig) -> int:
    """H; where the config does not say it, the hidden size is divided among the heads."""
    return getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads


def kv_heads(model: PretrainedConfig) -> int:
    """K; configs of LLaMA 1 do not say it: every query head has its own."""
    return getattr(model, "num_key_value_heads", None) or model.num_attention_heads
