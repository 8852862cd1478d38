"""LLaMA: pre-norm residual blocks of grouped-query attention and a gated MLP."""

from typing import Any

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

    def __init__(self, config: CollieConfig, attention: Attention, mlp: nn.Module) -> None:
        super().__init__()
        model = config.model_config
        self.attention_norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.attention = attention
        self.mlp_norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.mlp = mlp
        self.dropout = config.dropout

    def forward(self, x_BSE: Tensor, rope: Rotation, mask: Mask, cache: Cache | None = None) -> Tensor:
        mixed_BSE = self.attention(self.attention_norm(x_BSE), rope, mask, cache)
        x_BSE = x_BSE + F.dropout(mixed_BSE, self.dropout, self.training)
        return x_BSE + F.dropout(self.mlp(self.mlp_norm(x_BSE)), self.dropout, self.training)


@register
class LlamaForCausalLM(CollieModelForCausalLM):
    """LLaMA, with grouped heads, biases, scaled rotary embedding, windows and a tied head where the config has them.

    Families of its kind are subclasses: they say in `make_attention` and `make_mlp` what is special about them.
    """

    model_types = ("llama",)
    names = NAMES
    plan = PLAN
    architecture = "LlamaForCausalLM"

    def __init__(self, config: CollieConfig) -> None:
        super().__init__(config)
        model = self.config
        self.embed = nn.Embedding(model.vocab_size, model.hidden_size)
        self.layers = nn.ModuleDict(
            {
                str(i): LlamaLayer(config, self.make_attention(i), self.make_mlp())
                for i in range(model.num_hidden_layers)
            }
        )
        self.norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.head = LMHead(model.hidden_size, model.vocab_size, bias=False)
        self.rope = Rope.from_config(model, head_dim(model))
        self.tie_weights()

    def make_attention(self, index: int, **special: Any) -> Attention:
        """Make layer `index`'s attention; `special` are those of its settings that this family has otherwise."""
        model, bias = self.config, getattr(self.config, "attention_bias", False)
        settings: dict[str, Any] = {"bias": bias, "out_bias": bias, "window": window(model, index)} | special
        return Attention(
            model.hidden_size,
            model.num_attention_heads,
            kv_heads(model),
            head_dim(model),
            index=index,
            dropout=self.collie_config.dropout,
            use_flash=self.collie_config.use_flash,
            **settings,
        )

    def make_mlp(self, **special: Any) -> GatedMLP:
        """Make a layer's MLP; `special` as in `make_attention`."""
        model = self.config
        settings: dict[str, Any] = {"bias": getattr(model, "mlp_bias", False)} | special
        return GatedMLP(model.hidden_size, model.intermediate_size, model.hidden_act, **settings)


def head_dim(model: PretrainedConfig) -> int:
    """H; where the config does not say it, the hidden size is divided among the heads."""
    return getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads


def kv_heads(model: PretrainedConfig) -> int:
    """K; configs of LLaMA 1 do not say it: every query head has its own."""
    return getattr(model, "num_key_value_heads", None) or model.num_attention_heads


def window(model: PretrainedConfig, index: int) -> int | None:
    """How many keys layer `index` sees, None for all; read as transformers' caches read it, which keep no more."""
    kinds = getattr(model, "layer_types", None)
    if kinds is not None and kinds[index] != "sliding_attention":
        return None
    return getattr(model, "sliding_window", None)
