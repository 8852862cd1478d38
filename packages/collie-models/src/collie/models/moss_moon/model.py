"""MOSS-moon and CodeGen: one norm a layer, attention and MLP side by side, as in GPT-J."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig

from collie.config import CollieConfig
from collie.interfaces import ConfigError
from collie.models._registry import register
from collie.models.base import CollieModelForCausalLM
from collie.models.moss_moon.configuration import Moss003MoonConfig
from collie.models.moss_moon.names import BLOCKS, NAMES
from collie.models.moss_moon.plan import PLAN
from collie.module import MLP, Attention, LMHead, Mask, Rope, Rotation

# B batch, S sequence, E hidden


class Moss003MoonLayer(nn.Module):
    """x + attention(norm(x)) + mlp(norm(x))."""

    def __init__(self, config: CollieConfig, index: int) -> None:
        super().__init__()
        model = config.model_config
        width, heads = model.n_embd, model.n_head
        self.norm = nn.LayerNorm(width, model.layer_norm_epsilon)
        self.attention = Attention(
            width,
            heads,
            heads,
            width // heads,
            index=index,
            fused=True,
            dropout=config.dropout,
            use_flash=config.use_flash,
        )
        self.mlp = MLP(width, model.n_inner or 4 * width, model.activation_function, bias=True)
        self.dropout = config.dropout

    def forward(self, x_BSE: Tensor, rope: Rotation, mask: Mask, cache: Cache | None = None) -> Tensor:
        normed_BSE = self.norm(x_BSE)
        mixed_BSE = F.dropout(self.attention(normed_BSE, rope, mask, cache), self.dropout, self.training)
        return x_BSE + mixed_BSE + F.dropout(self.mlp(normed_BSE), self.dropout, self.training)


@register
class Moss003MoonForCausalLM(CollieModelForCausalLM):
    """MOSS-moon 003; also CodeGen."""

    model_types = ("moss", "codegen")
    marks = ("rotary_dim",)  # "moss" is also the type of the 7B model, which is of another kind
    names = NAMES
    plan = PLAN
    architecture = "MossForCausalLM"
    config_class = Moss003MoonConfig

    def __init__(self, config: CollieConfig) -> None:
        super().__init__(config)
        model = self.config
        if model.n_head % BLOCKS or model.n_embd % model.n_head:
            raise ConfigError(
                f"n_head={model.n_head} must be a multiple of {BLOCKS} and divide n_embd={model.n_embd}: "
                f"this family's checkpoints store attention weights in {BLOCKS} blocks of whole heads."
            )
        self.embed = nn.Embedding(model.vocab_size, model.n_embd)
        self.layers = nn.ModuleDict({str(i): Moss003MoonLayer(config, i) for i in range(model.n_layer)})
        self.norm = nn.LayerNorm(model.n_embd, model.layer_norm_epsilon)
        self.head = LMHead(model.n_embd, model.vocab_size, bias=True)
        self.rope = Rope.from_config(model, model.rotary_dim or model.n_embd // model.n_head, interleaved=True)
        self.tie_weights()

    @classmethod
    def adopt(cls, model_config: PretrainedConfig) -> PretrainedConfig:
        """CodeGen's config is transformers' own; what says "moss" becomes a Moss003MoonConfig."""
        return model_config if model_config.model_type == "codegen" else super().adopt(model_config)
