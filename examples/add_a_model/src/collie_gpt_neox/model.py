"""GPT-NeoX: attention and MLP side by side, each behind a LayerNorm of its own."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM, require_values
from collie.module import MLP, Attention, LMHead, Mask, Rope, Rotation
from collie_gpt_neox.names import NAMES
from collie_gpt_neox.plan import PLAN

# B batch, S sequence, E hidden


class GPTNeoXLayer(nn.Module):
    """x + attention(attention_norm(x)) + mlp(mlp_norm(x))."""

    def __init__(self, config: CollieConfig, index: int) -> None:
        super().__init__()
        model = config.model_config
        width, heads = model.hidden_size, model.num_attention_heads
        self.attention_norm = nn.LayerNorm(width, model.layer_norm_eps)
        self.attention = Attention(
            width,
            heads,
            heads,
            width // heads,
            index=index,
            bias=model.attention_bias,
            out_bias=model.attention_bias,
            fused=True,
            dropout=config.dropout,
            use_flash=config.use_flash,
        )
        self.mlp_norm = nn.LayerNorm(width, model.layer_norm_eps)
        self.mlp = MLP(width, model.intermediate_size, model.hidden_act, bias=True)
        self.dropout = config.dropout

    def forward(self, x_BSE: Tensor, rope: Rotation, mask: Mask, cache: Cache | None = None) -> Tensor:
        mixed_BSE = self.attention(self.attention_norm(x_BSE), rope, mask, cache)
        inner_BSE = self.mlp(self.mlp_norm(x_BSE))
        x_BSE = x_BSE + F.dropout(mixed_BSE, self.dropout, self.training)
        return x_BSE + F.dropout(inner_BSE, self.dropout, self.training)


class GPTNeoXForCausalLM(CollieModelForCausalLM):
    """GPT-NeoX and Pythia, with parallel residual branches."""

    model_types = ("gpt_neox",)
    names = NAMES
    plan = PLAN
    architecture = "GPTNeoXForCausalLM"

    def __init__(self, config: CollieConfig) -> None:
        require_values(config.model_config, use_parallel_residual=True)
        super().__init__(config)
        model = self.config
        self.embed = nn.Embedding(model.vocab_size, model.hidden_size)
        self.layers = nn.ModuleDict({str(i): GPTNeoXLayer(config, i) for i in range(model.num_hidden_layers)})
        self.norm = nn.LayerNorm(model.hidden_size, model.layer_norm_eps)
        self.head = LMHead(model.hidden_size, model.vocab_size, bias=False)
        turning = model.rope_parameters.get("partial_rotary_factor", 1.0)
        self.rope = Rope.from_config(model, int(model.hidden_size // model.num_attention_heads * turning))
        self.tie_weights()
