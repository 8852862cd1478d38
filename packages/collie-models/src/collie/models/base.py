"""What all families share: how a model is found, made, loaded and saved. How it runs is in `_decoder`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import GenerationConfig, PretrainedConfig

from collie.config import CollieConfig
from collie.interfaces import ConfigError
from collie.models._decoder import Decoder
from collie.models._describe import config_json
from collie.models._dtype import choose_dtype
from collie.models._initialise import initialiser
from collie.models._registry import find_family
from collie.models._resize import resize
from collie.models._steps import (
    adapted,
    build,
    give_weights,
    read_alike,
    refuse_quantized,
    refuse_unmerged,
    refuse_unsupported,
    split,
)
from collie.models.weights import (
    Description,
    Names,
    byte_size,
    fetched,
    is_url,
    local_folder,
    remote_model,
    write_folder,
)
from collie.module import LMHead
from collie.parallel import (
    Plan,
    Stream,
    Topology,
    active_topology,
    full_parameters,
    refill,
    setup_distribution,
)

_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_NOT_OF_THE_HUB = {  # what transformers' from_pretrained takes, or took, besides
    "subfolder": "Give the path of that folder.",
    "proxies": "Set the environment variable HTTPS_PROXY.",
    "use_auth_token": "It is called token.",
}


class CollieModelForCausalLM(Decoder):
    """A decoder-only language model: embed → layers → norm → head.

    A family is a subclass that makes these parts in its `__init__`, as `Decoder` describes them, and sets the class
    attributes below.

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
        described = model_config.to_dict() | {"model_type": model_config.model_type}  # a plain config leaves it out
        adopted: PretrainedConfig = cls.config_class.from_dict(described)
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
        if is_url(path_or_name):
            raise ConfigError(
                f"from_pretrained reads a folder or a repository of the Hub, and {path_or_name} is a URL. Copy it to a "
                f"disk first, or make the model with from_config and call load_weights({str(path_or_name)!r})."
            )
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
        give_weights(model, config, topology, chosen, read_alike(folder, model, chosen, topology))
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

    # --- its weights --------------------------------------------------------------------------------------------

    def load_weights(self, path_or_name: str | Path, **hub: Any) -> None:
        """Replace this model's weights by a checkpoint's, in any layout. Collective.

        Args:
            path_or_name: a folder, a repository of the Hub, or a URL that fsspec knows, of which one rank of each node
                downloads the files of weights.
            hub: for the Hub, see `from_pretrained`.

        Raises:
            CheckpointError: there is no checkpoint, or a tensor is missing or misshapen, be it for one rank alone; on
                every rank. Nothing was replaced.
        """
        if unknown := set(hub) - set(_HUB):
            raise ConfigError(f"load_weights got the unknown argument {min(unknown)!r}; the Hub's are {_HUB}.")
        refuse_quantized(self, f"load_weights({str(path_or_name)!r})")
        topology = active_topology()
        with _found(path_or_name, topology) as place:
            refill(self, topology, read_alike(place, self, self.dtype, topology, **hub))

    def save_pretrained(self, path: str | Path, max_shard_size: int | str = "5GB", tokenizer: Any = None) -> None:
        """Write a Hugging Face folder that transformers reads, too. Collective: every rank calls it.

        config.json is the source's with what was changed; tensors have the checkpoint's names and row order; the
        source's other files are copied. The first rank of each pipeline stage writes, and holds one shard at a time.
        See `collie.models.weights.write_folder` for what happens to an existing folder.

        Args:
            path: of the folder, or a URL that fsspec knows.
            max_shard_size: bytes, or text such as "5GB", that a file holds at most.
            tokenizer: saved into the same folder, if given.

        Raises:
            CheckpointError: the file system refused; on every rank.
            MissingExtraError: the URL needs another package.
            ConfigError: the model has an adapter that is not merged.
            ValueError: max_shard_size is no size.
        """
        refuse_unmerged(self, f"save_pretrained({str(path)!r})")
        limit = byte_size(max_shard_size)
        topology = active_topology()
        parameters = full_parameters(self, topology)
        also = tokenizer.save_pretrained if tokenizer is not None else None
        write_folder(path, parameters, self.names, self.config, self.description, limit, topology, also)

    def description(self) -> Description:
        """Return what a checkpoint of this model says besides its weights."""
        return Description(config_json(self.config, self.source, self.dtype, self.architecture), self.source)

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
            RuntimeError: on a rank, an optimizer or a training engine has the present parameters. A plain optimizer of
                torch is not known before its first gradients: make it after this.
            CheckpointError: a rank has no room for the new values; on every rank, and the model is as it was.
        """
        resize(self, new_num_tokens, pad_to_multiple_of, mean_resizing)
        return self.embed

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


@contextmanager
def _found(path_or_name: str | Path, topology: Topology) -> Iterator[str | Path]:
    """Within it what a URL names is in a folder of this node; a path or a name comes as it is."""
    if not is_url(path_or_name):
        yield path_or_name
        return
    with fetched(remote_model(str(path_or_name)), topology, only=lambda name: "/" not in name) as folder:
        yield folder
