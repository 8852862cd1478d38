"""What all families share: one forward over their parts, generation, loading and saving."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, GenerationConfig, PretrainedConfig

from collie.config import CollieConfig
from collie.interfaces import ConfigError
from collie.models._describe import config_json
from collie.models._dtype import choose_dtype
from collie.models._generation import CausalLMOutput, Generates
from collie.models._initialise import initialiser
from collie.models._registry import find_family
from collie.models._resize import resize
from collie.models._stages import StageCache, relayed
from collie.models._steps import (
    adapted,
    build,
    give_weights,
    read_from,
    refuse_quantized,
    refuse_unmerged,
    refuse_unsupported,
    split,
)
from collie.models.weights import Description, Names, byte_size, local_folder, write_folder
from collie.module import GPTLMLoss, LMHead, Mask, Rope, Rotation, count_targets
from collie.parallel import (
    Plan,
    Stages,
    Stream,
    active_topology,
    full_parameters,
    refill,
    setup_distribution,
)

# B batch, S sequence (new tokens), T cached and new tokens, E hidden, V vocabulary

_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_NOT_OF_THE_HUB = {  # what transformers' from_pretrained takes, or took, besides
    "subfolder": "Give the path of that folder.",
    "proxies": "Set the environment variable HTTPS_PROXY.",
    "use_auth_token": "It is called token.",
}
_LOSS = GPTLMLoss()


class CollieModelForCausalLM(nn.Module, Generates):
    """A decoder-only language model: embed → layers → norm → head.

    A family is a subclass that makes these parts in its `__init__` and sets the class attributes below. A layer is
    called as `layer(x_BSE, rope, mask, cache)`. `layers` is keyed by the layers' numbers in the whole model.

    Args:
        config: sizes, dropout, checkpointing, use_flash; its model_config describes the architecture. The model's
            `collie_config` and `config` are these two.
    """

    # what a family says of itself
    model_types: ClassVar[tuple[str, ...]] = ()
    marks: ClassVar[tuple[str, ...]] = ()  # fields of its configs that another family of the same model_type lacks
    names: ClassVar[Names]
    plan: ClassVar[Plan | None] = None  # None: the family cannot be split over tensor-parallel ranks
    architecture: ClassVar[str] = ""  # for config.json of models that come from no checkpoint
    config_class: ClassVar[type[PretrainedConfig] | None] = None  # where transformers has none of its own

    embed: nn.Embedding
    layers: nn.ModuleDict
    norm: nn.Module
    head: LMHead
    rope: Rope
    stages: Stages | None = None  # under pipeline parallelism: what is not of this rank's stages is None

    def __init__(self, config: CollieConfig) -> None:
        super().__init__()
        config.model_config = self.adopt(config.model_config)
        self.collie_config = config
        self.config = config.model_config
        self.stream = Stream()  # what lies between the parts; `split` shares it among ranks
        self.source: Path | None = None  # the folder that save_pretrained copies other files from
        self.generation_config = GenerationConfig.from_model_config(self.config)

    # --- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def serves(cls, model_config: PretrainedConfig) -> bool:
        """Whether this family is the one that a config describes."""
        known = getattr(model_config, "model_type", None) in cls.model_types
        return known and all(hasattr(model_config, field) for field in cls.marks)

    @classmethod
    def adopt(cls, model_config: PretrainedConfig) -> PretrainedConfig:
        """Return the config as the class the family wants, with its defaults and its standard names.

        Families that transformers has get the right class already; others get their `config_class` here.
        """
        if cls.config_class is None or isinstance(model_config, cls.config_class):
            return model_config
        adopted: PretrainedConfig = cls.config_class.from_dict(model_config.to_dict())
        return adopted

    @classmethod
    def from_pretrained(
        cls, path_or_name: str | Path, config: CollieConfig | None = None, dtype: Any = None, **kwargs: Any
    ) -> "CollieModelForCausalLM":
        """Load a model from a Hugging Face folder or repository, in evaluation mode.

        The model is built without storage, the checkpoint is checked against it from its headers, and then each
        rank reads what it keeps: its part under tensor parallelism, under ZeRO-3 its slices of that alone, and the
        model ends with a forward-only engine, so that calling it and `generate` work at once. No code from the
        checkpoint runs.

        Args:
            path_or_name: a folder, or a repository of the Hub.
            config: the run's config; None reads one from the checkpoint. Its `low_cpu_mem_usage` makes no
                difference: loading always keeps host memory small.
            dtype: of the weights, a torch dtype or its name; by default what ds_config enables (bf16, fp16), else
                the checkpoint's own, else float32.
            kwargs: revision, token, cache_dir, local_files_only and force_download for the Hub;
                trust_remote_code is accepted and means nothing; without `config`, also fields of CollieConfig.

        Raises:
            ConfigError: an argument is unknown, no family serves the config, or sizes do not fit.
            CheckpointError: there is no checkpoint, or a tensor is missing or misshapen.
        """
        kwargs.pop("trust_remote_code", None)
        older_name = kwargs.pop("torch_dtype", None)
        dtype = dtype if dtype is not None else older_name
        hub = {key: kwargs.pop(key) for key in _HUB if key in kwargs}
        for name, instead in _NOT_OF_THE_HUB.items():
            if name in kwargs:
                raise ConfigError(f"from_pretrained does not take {name}={kwargs[name]!r}. {instead}")
        folder = local_folder(path_or_name, **hub)
        if config is None:
            config = CollieConfig.from_pretrained(str(folder), **kwargs)
        elif kwargs:
            raise ConfigError(f"from_pretrained got the unknown argument {next(iter(kwargs))!r}; the Hub's are {_HUB}.")
        family = cls._family(config)
        topology = setup_distribution(config)  # first of all: sizes that do not fit the world are said before others
        refuse_unsupported(family, config)
        model = build(family, config)
        split(model, topology)
        chosen = choose_dtype(dtype, config, folder)
        give_weights(model, config, topology, chosen, read_from(folder, model, chosen))
        model.source = folder
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return adapted(model).eval()

    @classmethod
    def from_config(cls, config: CollieConfig, dtype: Any = None) -> "CollieModelForCausalLM":
        """Make a model with weights by `config.initization_method`, in evaluation mode.

        The values depend on the config's seed and the parameters' names alone, so they are equal in every layout.

        Raises:
            ConfigError: no family serves the config, initization_method does not suit, or sizes do not fit.
        """
        family = cls._family(config)
        topology = setup_distribution(config)
        refuse_unsupported(family, config)
        model = build(family, config)
        split(model, topology)
        chosen = choose_dtype(dtype, config)
        give_weights(model, config, topology, chosen, initialiser(config, chosen))
        if config.source is not None and Path(config.source).is_dir():
            model.source = Path(config.source)
        return adapted(model).eval()

    @classmethod
    def _family(cls, config: CollieConfig) -> "type[CollieModelForCausalLM]":
        if cls is CollieModelForCausalLM:
            return find_family(config.model_config)
        if not cls.serves(config.model_config):
            raise ConfigError(
                f"{cls.__name__} does not serve this config of model_type {config.model_config.model_type!r}: "
                f"{find_family(config.model_config).__name__} does. CollieModelForCausalLM finds the family."
            )
        return cls

    def load_weights(self, path_or_name: str | Path, **hub: Any) -> None:
        """Replace this model's weights by a checkpoint's, in any layout. Collective.

        Raises:
            CheckpointError: there is no checkpoint, or a tensor is missing or misshapen. Nothing was replaced.
        """
        if unknown := set(hub) - set(_HUB):
            raise ConfigError(f"load_weights got the unknown argument {min(unknown)!r}; the Hub's are {_HUB}.")
        refuse_quantized(self, f"load_weights({str(path_or_name)!r})")
        refill(self, active_topology(), read_from(local_folder(path_or_name, **hub), self, self.dtype))

    def save_pretrained(self, path: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Write a Hugging Face folder that transformers reads, too. Collective: every rank calls it.

        config.json is the source's with what was changed; tensors have the checkpoint's names and row order; the
        source's other files are copied. The first rank of each pipeline stage writes, and holds one shard at a time.
        See `collie.models.weights.write_folder` for what happens to an existing folder.

        Raises:
            CheckpointError: the file system refused; on every rank.
            ConfigError: the model has an adapter that is not merged.
            ValueError: max_shard_size is no size.
        """
        refuse_unmerged(self, f"save_pretrained({str(path)!r})")
        limit = byte_size(max_shard_size)
        topology = active_topology()

        def describe() -> Description:
            return Description(config_json(self.config, self.source, self.dtype, self.architecture), self.source)

        parameters = full_parameters(self, topology)
        write_folder(Path(path), parameters, self.names, self.config, describe, limit, topology)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Give embedding and head another number of tokens, as transformers' method does, in any layout. Collective.

        Rows are added or removed at the end; the others keep their values, and a tied head stays tied. The config's
        vocab_size follows. New values depend on the config's seed and the sizes alone, so every layout has the same.

        Args:
            new_num_tokens: None keeps their number, and rounds it up where a multiple is asked for.
            pad_to_multiple_of: the number is rounded up to a multiple of it.
            mean_resizing: new rows lie close to the mean of the old ones, so that new tokens are unlikely at first;
                otherwise they are drawn as `from_config` draws them, which by default is N(0, initializer_range²).

        Returns:
            the embedding; under pipeline parallelism None on ranks that do not have it.

        Raises:
            ValueError: a number is no positive integer.
            RuntimeError: an optimizer or a training engine has the present parameters.
        """
        resize(self, new_num_tokens, pad_to_multiple_of, mean_resizing)
        return self.embed

    # --- running it ---------------------------------------------------------------------------------------------

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
            past_key_values: a cache of transformers with earlier tokens; it is extended in place.
            use_cache: make a cache where none is given.
            inputs_embeds: [B, S, E] in place of input_ids.
            return_logits: False with labels computes the loss in the head, and never holds [B, S, V].
            num_items_in_batch: what the loss is divided by, for means over more than this batch; by default the
                number of this batch's targets.
            logits_to_keep: logits of only so many last positions; 0 for all. The loss is that of all positions.
            return_dict, output_attentions, output_hidden_states: accepted from transformers' generate and peft;
                attentions and hidden states are not returned, and asking for them is refused.

        Raises:
            ValueError: arguments contradict each other or have wrong shapes.
        """
        _check_arguments(input_ids, inputs_embeds, labels, return_logits, output_attentions, output_hidden_states)
        cache = self._cache(past_key_values, use_cache)
        wanted: dict[str, Any] = {
            "labels": labels,
            "return_logits": return_logits,
            "num_items_in_batch": num_items_in_batch,
            "logits_to_keep": logits_to_keep,
        }
        if self.stages is not None:
            output = relayed(self, input_ids, attention_mask, position_ids, cache, inputs_embeds, **wanted)
        else:
            rope, mask = self.arranged(input_ids, attention_mask, position_ids, inputs_embeds, cache)
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
    ) -> tuple[Rotation, Mask]:
        """Return what all layers of one forward share; no hidden states are needed for it."""
        given = inputs_embeds if input_ids is None else input_ids
        assert given is not None
        blank_BSE = torch.zeros((), device=self.device).expand(*given.shape[:2], 1)
        return self.arrange(input_ids, attention_mask, position_ids, self._cached_length(cache), blank_BSE, cache)

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

        A family whose positions or visibility follow from the tokens overrides this. `past`: number of tokens in
        `cache`.
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
                x_BSE = checkpoint(self.stream.bound(layer), x_BSE, rope, mask, None, use_reentrant=False)
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
        if given is None:
            return self.new_cache() if use_cache else None
        if not isinstance(given, Cache) or given.is_compileable:
            raise ValueError(f"past_key_values of type {type(given).__name__} is not supported. Use a DynamicCache.")
        return given

    def new_cache(self) -> DynamicCache:
        """Return an empty cache for this rank's layers."""
        if self.stages is None:
            return DynamicCache(config=self.config)
        return StageCache(self.config, int(next(iter(self.layers))))

    def _cached_length(self, cache: Cache | None) -> int:
        first = next(iter(self.layers))
        return int(cache.get_seq_length(int(first))) if cache is not None else 0

    # --- what others ask of it ----------------------------------------------------------------------------------

    def weights_of_both_ends(self) -> list[nn.Parameter]:
        """The tied weight, on the two pipeline stages that hold a copy each: its gradients belong to both."""
        if self.stages is None or not getattr(self.config, "tie_word_embeddings", False):
            return []
        held = [module.get_parameter("weight") for module in (self.embed, self.head) if module is not None]
        return [weight for weight in held if weight.requires_grad]

    def get_input_embedding(self) -> nn.Embedding:
        """The token embedding."""
        return self.embed

    def get_lm_head(self) -> LMHead:
        """The output projection."""
        return self.head

    def get_input_embeddings(self) -> nn.Embedding:
        """transformers' and peft's name for `get_input_embedding`."""
        return self.embed

    def get_output_embeddings(self) -> LMHead:
        """transformers' and peft's name for `get_lm_head`."""
        return self.head

    def tie_weights(self) -> None:
        """Let the head share the embedding's Parameter, where the config says so. Families call it once, on `meta`."""
        if getattr(self.config, "tie_word_embeddings", False):
            self.head.weight = self.embed.weight


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
