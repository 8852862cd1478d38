"""What transformers' `generate` needs of a model that is not one of transformers' own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from collie.config import CollieConfig
from collie.parallel import active_topology, draw_alike


@dataclass
class CausalLMOutput(ModelOutput):
    """What a forward returns; also indexed and unpacked as transformers' outputs are.

    loss: 0-d float32, where labels were given.
    logits: [B, S, V], or None with return_logits=False.
    past_key_values: the cache with this forward's keys and values in it, or None.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None


class Generates(GenerationMixin):
    """The side of a model that `generate` sees."""

    main_input_name = "input_ids"
    base_model_prefix = ""
    _is_stateful = False

    collie_config: CollieConfig

    def new_cache(self) -> DynamicCache:
        """Return an empty cache for the layers that are here."""
        raise NotImplementedError

    def check_cache(self, cache: Cache | None) -> None:
        """Raise ValueError for a cache that the layers here cannot extend."""
        raise NotImplementedError

    def generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """transformers' generate. Under ZeRO-3 on several ranks all of them make as many forwards as the longest.

        The ranks of a replica are given the same prompts, and draw the same numbers: those of the first of them.

        Raises:
            ValueError: `past_key_values` is a cache that the model cannot extend, or rows are packed; on every rank,
                before any exchange.
        """
        if kwargs.get("cu_seqlens") is not None:
            raise ValueError("generate goes on with one row a sequence, and cu_seqlens says that rows are packed.")
        self.check_cache(kwargs.get("past_key_values"))
        topology = active_topology()
        draw_alike(topology)
        if self.collie_config.pp_size > 1 and kwargs.get("past_key_values") is None:
            # transformers would make one of its own; where it is given embeddings it does whatever is said
            embeds, keyword = kwargs.get("inputs_embeds"), kwargs.get("use_cache")
            caches = embeds is not None or self._uses_cache(generation_config, keyword)
            kwargs["past_key_values"] = self.new_cache() if caches else None
        if self.collie_config.zero_stage == 3 and topology.dp_size > 1:
            kwargs.setdefault("synced_gpus", True)
        return super().generate(inputs, generation_config, *args, **kwargs)

    def _uses_cache(self, given: GenerationConfig | None, keyword: bool | None) -> bool:
        """Whether `generate` caches: what the keyword says, else the given config, else the model's, else it does."""
        said = (keyword, given.use_cache if given is not None else None, self.generation_config.use_cache)
        return next((use for use in said if use is not None), True)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return one step's arguments of `forward`, as transformers prepares them."""
        kwargs.pop("tokenizer", None)  # it is there for stop_strings, and transformers hands it on to the forward
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        mask, tokens = inputs.get("attention_mask"), inputs.get("input_ids")
        if mask is not None and tokens is not None:
            # a rank that has finished and only keeps the others company gets no new tokens, but a longer mask
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            inputs["attention_mask"] = mask[:, : past + tokens.shape[1]]
        return inputs

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @classmethod
    def can_generate(cls) -> bool:
        return True

    @classmethod
    def is_remote_code(cls) -> bool:
        return False

    def get_experts_implementation(self) -> dict[str, str]:
        return {}
