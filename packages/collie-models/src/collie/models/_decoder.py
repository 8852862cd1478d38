"""The forward of a decoder-only model over the parts that a family gives it, whole or one pipeline stage at a time."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PretrainedConfig

from collie.config import CollieConfig
from collie.interfaces import ConfigError
from collie.models._generation import CausalLMOutput, Generates
from collie.models._recompute import run_again
from collie.models._stages import StageCache, relayed
from collie.module import GPTLMLoss, LMHead, Mask, Packed, Rope, Rotation, count_targets, without_first_tokens
from collie.parallel import Stages, Stream

# B batch, S sequence (new tokens), T cached and new tokens, E hidden, V vocabulary

_LOSS = GPTLMLoss()


class Decoder(nn.Module, Generates):
    """embed → layers → norm → head, which a subclass makes in its `__init__`.

    A layer is called as `layer(x_BSE, rope, mask, cache)`. `layers` is keyed by the layers' numbers in the whole model.
    """

    collie_config: CollieConfig
    config: PretrainedConfig
    stream: Stream  # what lies between the parts

    embed: nn.Embedding
    layers: nn.ModuleDict
    norm: nn.Module
    head: LMHead
    rope: Rope
    stages: Stages | None = None  # under pipeline parallelism: what is not of this rank's stages is None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_logits: bool = True,
        num_items_in_batch: int | Tensor | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CausalLMOutput:
        """Run the model over new tokens, after those in the cache.

        Args:
            input_ids: [B, S]
            attention_mask: [B, T], 1 for tokens and 0 for padding on either side; None for no padding.
            position_ids: [B, S] or [1, S]; by default counted from the cache's end, alike in every row.
            labels: [B, S] with -100 where there is no target; shifted here.
            past_key_values: a cache with earlier tokens, transformers' own or under pp_size > 1 one of `new_cache`; it
                is extended in place.
            use_cache: make a cache where none is given.
            inputs_embeds: [B, S, E] in place of input_ids.
            cu_seqlens: [rows + 1] int32: where rows begin in the flattened B·S positions, where several are packed into
                one sequence, and B·S (see `collie.module.Packed`). They do not see each other, a row's first token is
                no target, and positions are counted in each row unless given. Without a cache.
            return_logits: False with labels computes the loss in the head, and never holds [B, S, V].
            num_items_in_batch: what the loss is divided by, for means over more than this batch; by default the
                number of this batch's targets.
            logits_to_keep: logits of only so many last positions; 0 for all. The loss is that of all positions.
            return_dict, output_attentions, output_hidden_states: accepted from transformers' generate and peft;
                attentions and hidden states are not returned, and asking for them is refused.

        Raises:
            ValueError: arguments contradict each other or have wrong shapes, or the cache is none for this model.
            ConfigError: packed rows are given to a family that cannot keep them apart.
        """
        _check_arguments(input_ids, inputs_embeds, labels, return_logits, output_attentions, output_hidden_states)
        cache = self._cache(past_key_values, use_cache)
        if cu_seqlens is not None and labels is not None:
            labels = without_first_tokens(labels, cu_seqlens.to(labels.device))
        wanted: dict[str, Any] = {
            "labels": labels,
            "return_logits": return_logits,
            "num_items_in_batch": num_items_in_batch,
            "logits_to_keep": logits_to_keep,
        }
        if self.stages is not None:
            output = relayed(self, input_ids, attention_mask, position_ids, cache, inputs_embeds, cu_seqlens, **wanted)
        else:
            rope, mask = self.arranged(input_ids, attention_mask, position_ids, inputs_embeds, cache, cu_seqlens)
            with self.flow(_length(input_ids, inputs_embeds), cache):
                x_BSE = self.run_layers(self.enter(input_ids, inputs_embeds), rope, mask, cache)
                output = self.finish(x_BSE, **wanted)
        output.past_key_values = cache
        return output

    # The parts of a forward, which a pipeline's stages run apart, inside `flow`.

    def flow(self, length: int, cache: Cache | None = None) -> AbstractContextManager[None]:
        """Return the context of a forward over `length` new tokens: see `collie.parallel.Stream`."""
        dropout = self.collie_config.dropout if self.training else 0.0
        return self.stream.flow(length, split=cache is None, dropout=dropout)

    def enter(self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Tensor:
        """Return [B, S, E]: what the first layer gets."""
        x_BSE = self.embed(input_ids) if inputs_embeds is None else self.stream.part(inputs_embeds)
        return F.dropout(x_BSE, self.collie_config.dropout, self.training)

    def arranged(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: Cache | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Rotation, Mask]:
        """Return what all layers of one forward share; no hidden states are needed for it."""
        given = inputs_embeds if input_ids is None else input_ids
        assert given is not None
        if cu_seqlens is not None:
            self._check_packed(cache)
            packed = Packed.build(cu_seqlens.to(self.device), given.shape[0], given.shape[1])
            return self._arranged_rows(attention_mask, position_ids, packed)
        blank_BSE = torch.zeros((), device=self.device).expand(*given.shape[:2], 1)
        return self.arrange(input_ids, attention_mask, position_ids, self._cached_length(cache), blank_BSE, cache)

    def _arranged_rows(
        self, attention_mask: Tensor | None, position_ids: Tensor | None, packed: Packed
    ) -> tuple[Rotation, Mask]:
        positions_BS = packed.positions_BS if position_ids is None else position_ids.to(self.device)
        mask = Mask.build(attention_mask, packed.length, 0, self.device, packed=packed)
        return self.rope.of_rows(positions_BS, packed), mask

    def arrange(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past: int,
        x_BSE: Tensor,
        cache: Cache | None,
    ) -> tuple[Rotation, Mask]:
        """Return what all layers of one forward share: how positions turn, and which keys a query sees.

        A family whose positions or visibility follow from the tokens overrides this, and takes no packed rows.
        `past`: number of tokens in `cache`.
        """
        new, device = self.stream.length(x_BSE), x_BSE.device
        mask = Mask.build(attention_mask, new, past, device)
        if position_ids is None:
            return self.rope.span(past, past + new, device), mask
        return self.rope.at(position_ids.to(device)), mask

    def run_layers(
        self, x_BSE: Tensor, rope: Rotation, mask: Mask, cache: Cache | None = None, names: Iterable[str] | None = None
    ) -> Tensor:
        """Run the layers of these names, all unless given. [B, S, E] → [B, S, E]."""
        # a cache is extended by each call of a layer, so a layer that will be called again must not have one
        again = self.collie_config.checkpointing and self.training and torch.is_grad_enabled() and cache is None
        for layer in self.layers.values() if names is None else (self.layers[name] for name in names):
            if again:
                x_BSE = run_again(layer, self.stream.bound(layer), x_BSE, rope, mask, None)
            else:
                x_BSE = layer(x_BSE, rope, mask, cache)
        return x_BSE

    def finish(
        self,
        x_BSE: Tensor,
        labels: Tensor | None = None,
        return_logits: bool = True,
        num_items_in_batch: int | Tensor | None = None,
        logits_to_keep: int = 0,
        length: int | None = None,
    ) -> CausalLMOutput:
        """Return loss and logits of what the last layer gave, in one call of the head: under ZeRO-3 each gathers it.

        `length`: how many positions count, all unless given.
        """
        hidden_BSE = self.stream.whole(self.norm(x_BSE))[:, :length]
        if labels is None:
            return CausalLMOutput(logits=self.head(hidden_BSE[:, -logits_to_keep:]))  # -0 keeps all
        labels = labels.to(hidden_BSE.device)
        logits_BSV = self.head(hidden_BSE) if return_logits else None
        count: int | Tensor = count_targets(labels).clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        total = self.head(hidden_BSE, labels) if logits_BSV is None else _LOSS.sum(logits_BSV, labels)[0]
        kept_BSV = logits_BSV[:, -logits_to_keep:] if logits_BSV is not None else None
        return CausalLMOutput(loss=total / count, logits=kept_BSV)

    def stage_shape(self, rows: int, length: int, cache: Cache | None = None) -> tuple[int, int, int]:
        """Return the shape of what one pipeline stage hands to the next, for input_ids of [rows, length]."""
        return rows, self.stream.positions(length, split=cache is None), self.config.hidden_size

    def _cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        self.check_cache(given)
        return self.new_cache() if given is None and use_cache else given

    def _check_packed(self, cache: Cache | None) -> None:
        if type(self).arrange is not Decoder.arrange:
            raise ConfigError(
                f"{type(self).__name__} finds positions and what may be seen in a row's tokens, and cannot keep packed "
                f"rows apart. Train it on rows as they are, without `packed`."
            )
        if cache is not None:
            raise ValueError(
                "a cache keeps one row a sequence, and cu_seqlens says that rows are packed. Give rows apart, or leave "
                "use_cache and past_key_values out."
            )

    def check_cache(self, cache: Cache | None) -> None:
        """Raise ValueError for a cache that the layers here cannot extend; every rank of a pipeline refuses alike."""
        if cache is None:
            return
        kind = type(cache).__name__
        if not isinstance(cache, Cache) or cache.is_compileable:
            raise ValueError(f"past_key_values of type {kind} is not supported. Use a DynamicCache.")
        if self.stages is not None and not isinstance(cache, StageCache):
            raise ValueError(
                f"past_key_values of type {kind} knows its length by the first layer, which other pipeline stages do "
                f"not have (pp_size={self.collie_config.pp_size}). Use model.new_cache()."
            )

    def new_cache(self) -> DynamicCache:
        """Return an empty cache for this rank's layers."""
        if self.stages is None:
            return DynamicCache(config=self.config)
        return StageCache(self.config, int(next(iter(self.layers))))

    def _cached_length(self, cache: Cache | None) -> int:
        first = next(iter(self.layers))
        return int(cache.get_seq_length(int(first))) if cache is not None else 0


def _length(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> int:
    given = input_ids if input_ids is not None else inputs_embeds
    assert given is not None
    return given.shape[1]


def _check_arguments(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    labels: Tensor | None,
    return_logits: bool,
    output_attentions: bool | None,
    output_hidden_states: bool | None,
) -> None:
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give either input_ids or inputs_embeds, and not both.")
    if labels is None and not return_logits:
        raise ValueError("return_logits=False without labels leaves nothing to compute. Give labels.")
    if output_attentions or output_hidden_states:
        raise ValueError(
            "output_attentions and output_hidden_states are not supported: the model returns logits and loss."
        )
