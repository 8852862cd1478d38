"""ChatGLM: a bidirectional context, two position channels, and residual branches that start from normed input."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from collie.config import CollieConfig
from collie.models._registry import register
from collie.models._steps import require_values
from collie.models.base import CollieModelForCausalLM
from collie.models.chatglm.configuration import ChatGLMConfig
from collie.models.chatglm.context import Context, Contexts
from collie.models.chatglm.names import NAMES
from collie.models.chatglm.plan import PLAN
from collie.module import MLP, Attention, LMHead, Mask, Rope, Rotation

# B batch, S sequence, E hidden, P pairs of a head's dimensions that turn together


class ChatGLMLayer(nn.Module):
    """a = norm(x), h = α·a + attention(a); then m = norm(h), α·m + mlp(m), with α = sqrt(2·layers) as in DeepNorm.

    Wang et al. 2022, "DeepNet". The family's published code has α = sqrt(2·28) whatever the number of layers; that is
    the same for all published checkpoints, which have 28.
    """

    def __init__(self, config: CollieConfig, index: int) -> None:
        super().__init__()
        model = config.model_config
        width, heads = model.hidden_size, model.num_attention_heads
        self.attention_norm = nn.LayerNorm(width, model.layernorm_epsilon)
        self.attention = Attention(
            width,
            heads,
            heads,
            width // heads,
            index=index,
            bias=True,
            out_bias=True,
            fused=True,
            dropout=config.dropout,
            use_flash=config.use_flash,
        )
        self.mlp_norm = nn.LayerNorm(width, model.layernorm_epsilon)
        self.mlp = MLP(width, model.inner_hidden_size, "gelu_new", bias=True)
        self.alpha = math.sqrt(2 * model.num_layers)
        self.dropout = config.dropout

    def forward(self, x_BSE: Tensor, rope: Rotation, mask: Mask, cache: Cache | None = None) -> Tensor:
        normed_BSE = self.attention_norm(x_BSE)
        mixed_BSE = self.attention(normed_BSE, rope, mask, cache)
        normed_BSE = self.mlp_norm(self.alpha * normed_BSE + F.dropout(mixed_BSE, self.dropout, self.training))
        return self.alpha * normed_BSE + F.dropout(self.mlp(normed_BSE), self.dropout, self.training)


class TwoChannelRope(Rope):
    """Half of a head's pairs turn by the first position channel, the other half, as fast, by the second."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(head_dim // 2)
        self.frequencies = self.frequencies.half().float()  # rounded as in training

    def at(self, positions_B2S: Tensor) -> Rotation:
        angles_BSP = self.angles(positions_B2S).transpose(1, 2).flatten(-2)
        return Rotation.from_angles(angles_BSP, interleaved=False)


@register
class ChatGLMForCausalLM(CollieModelForCausalLM):
    """ChatGLM-6B. It finds each row's context itself, also in `generate`, with a cache and without.

    A row without bos is plain text: every token sees those before it. `position_ids` are [B, 2, S], where given.
    """

    model_types = ("chatglm",)
    marks = ("position_encoding_2d",)  # "chatglm" is also the type of ChatGLM2, which has one position channel
    names = NAMES
    plan = PLAN
    architecture = "ChatGLMModel"
    config_class = ChatGLMConfig

    rope: TwoChannelRope

    def __init__(self, config: CollieConfig) -> None:
        require_values(config.model_config, position_encoding_2d=True, pre_seq_len=None)
        super().__init__(config)
        model = self.config
        self.embed = nn.Embedding(model.vocab_size, model.hidden_size)
        self.layers = nn.ModuleDict({str(i): ChatGLMLayer(config, i) for i in range(model.num_layers)})
        self.norm = nn.LayerNorm(model.hidden_size, model.layernorm_epsilon)
        self.head = LMHead(model.hidden_size, model.vocab_size, bias=False)
        self.rope = TwoChannelRope(model.hidden_size // model.num_attention_heads)
        self.contexts = Contexts()
        self.tie_weights()

    def arrange(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past: int,
        x_BSE: Tensor,
        cache: Cache | None,
    ) -> tuple[Rotation, Mask]:
        """Find the rows' contexts, and what follows from them.

        Raises:
            ValueError: there are no tokens to find them in, or position_ids are not [B, 2, S].
        """
        if input_ids is None:
            raise ValueError("ChatGLM finds a row's context in its tokens. Give input_ids in place of inputs_embeds.")
        context, stop = Context.find(input_ids, attention_mask, past, self.config), past + input_ids.shape[1]
        before = self.contexts.get(cache) if past else None
        if before is not None:
            context = before.followed_by(context)
        elif past and position_ids is None:
            raise ValueError(
                "past_key_values were not filled by this model. Give position_ids, [batch, 2, new tokens]."
            )
        self.contexts.keep(cache, context)
        if position_ids is None:
            position_ids = context.positions(past, stop)
        elif position_ids.dim() != 3 or position_ids.shape[1:] != (2, stop - past):
            raise ValueError(f"position_ids have shape {tuple(position_ids.shape)}; need [batch, 2, {stop - past}].")
        mask = Mask.build(attention_mask, stop - past, past, x_BSE.device, prefix_B=context.prefix_B)
        return self.rope.at(position_ids.to(x_BSE.device)), mask

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        kwargs.pop("position_ids", None)  # `generate` knows of one channel
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
