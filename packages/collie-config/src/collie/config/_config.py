"""CollieConfig: every setting of a run in one object."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from collie.config import _deepspeed, _makers
from collie.config._files import plain, read_mapping, write_mapping
from collie.config._lazy import UNSET, Lazy
from collie.config._validate import check_batch_size, check_sizes, check_values
from collie.interfaces import MissingExtraError, UnknownFieldError, nearest

_ALIASES = {"init_method": "initization_method"}
_LAZY = {
    "model_config": Lazy(_makers.empty_model_config, _makers.model_config_from),
    "peft_config": Lazy(_makers.empty_peft_config, _makers.peft_config_from),
    "quantization_config": Lazy(_makers.empty_quantization_config, _makers.quantization_config_from),
}
_Class = TypeVar("_Class", bound=type)


def _accept_aliases(cls: _Class) -> _Class:
    """Make the constructor accept aliases, and meet a misspelled name with the same sentence as an assignment does."""
    generated = cls.__init__  # type: ignore[misc]  # of this very class

    @functools.wraps(generated)
    def __init__(self: Any, **values: Any) -> None:
        known = {_ALIASES.get(name, name): value for name, value in values.items()}
        named = {field.name for field in fields(cls)}
        generated(self, **{name: value for name, value in known.items() if name in named})
        for name, value in known.items():
            if name not in named:
                setattr(self, name, value)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


@_accept_aliases
@dataclass(kw_only=True, eq=False, repr=False)
class CollieConfig:
    """All settings of a run.

    A name that is no field is read from `model_config`, and set on it if it has it. Values are checked by `validate`.

        config = CollieConfig.from_pretrained("fnlp/moss-moon-003-sft")
        config.train_epochs = 1
        config.hidden_size  # that of the model
    """

    seed: int = 42
    """Seed of all random numbers, 0 … 2**32 - 1."""
    dp_size: int = 1
    """Data-parallel replicas; 1 becomes world size / (tp_size × pp_size)."""
    pp_size: int = 1
    """Pipeline stages."""
    tp_size: int = 1
    """Tensor-parallel ranks a stage."""
    pp_partition_method: str = "parameters"
    """How layers are dealt to stages: "parameters" (equal sizes), "uniform" (equal counts), or "type:REGEX"."""
    train_epochs: int = 100
    """Passes over the training data."""
    eval_per_n_steps: int = 0
    """Evaluate every so many steps; 0 never does."""
    eval_per_n_epochs: int = 0
    """Evaluate every so many epochs; 0 never does."""
    train_micro_batch_size: int = 1
    """Rows a replica takes in one forward pass."""
    gradient_accumulation_steps: int = 1
    """Micro-batches in one step."""
    eval_batch_size: int = 1
    """Rows a replica evaluates at once."""
    checkpointing: bool = True
    """Whether activations are computed again in the backward pass instead of kept."""
    use_flash: bool = True
    """Whether attention runs in the fastest fused kernel that can do it; else step by step, with float32 scores."""
    dropout: float = 0.0
    """Probability of dropping an activation, in [0, 1)."""
    initization_method: str = "none"
    """How new parameters are filled: "none" as the model does it, else a function of torch.nn.init without its final
    underscore, one of collie.config.INITIALIZATIONS. `init_method` is the same field."""
    initization_method_params: dict[str, Any] | None = None
    """Arguments of that function, for example {"std": 0.02}."""
    low_cpu_mem_usage: bool = True
    """Makes no difference: loading always keeps host memory small."""
    ds_config: str | os.PathLike[str] | dict[str, Any] = ""
    """DeepSpeed's configuration: a dict, or the name of a JSON or YAML file. Read through `deepspeed`."""
    model_config: Any = _LAZY["model_config"]
    """Architecture of the model: a transformers.PretrainedConfig. The default, made at the first reading, is empty."""
    peft_config: Any = _LAZY["peft_config"]
    """Adapter: a peft.PeftConfig or a dict of one. The default, made at the first reading, means none."""
    quantization_config: Any = _LAZY["quantization_config"]
    """Quantization: a transformers.BitsAndBytesConfig or a dict of one. The default means none."""
    dataloader_num_workers: int = 0
    """Processes that prepare batches beside each rank; 0 prepares them in the rank itself."""
    group_by_length: bool = False
    """Whether a step takes rows of like length, so that less of a batch is padding; the step with the longest row of an
    epoch comes first. Which rows share a step then follows from lengths as well as chance. Not for streams."""
    pp_schedule: str = "1f1b"
    """Order of a step's micro-batches in the stages: "1f1b" (one stage a rank) or "interleaved" (two a rank)."""
    sequence_parallel: bool = False
    """Whether tensor-parallel ranks also split what lies between a model's blocks, along the sequence. As much is
    exchanged; what norms and dropout keep for the backward pass is a part on each rank, and so is all that is kept
    between layers with `checkpointing`. Forwards that make or use a cache run without it, and without gradients."""
    on_nan: str = "stop"
    """What happens at a step whose loss or gradient norm is NaN or infinite: "stop" ends the run with an error that
    names the rows, "skip" leaves such an update out and goes on, "ignore" does not look. (That float16 skips updates
    while it looks for its loss scale is none of this.)"""
    source: str | None = None
    """Folder or name that model_config was read from; a model's other files (tokenizer, …) are copied from there."""

    _derived_dp: ClassVar[int | None] = None  # the dp_size that validate() set, as opposed to one that was asked for

    # ---------------------------------------------------------------- names

    def __getattr__(self, name: str) -> Any:
        """Read a name that is no field from model_config."""
        if name.startswith("_"):  # copy, pickle and notebooks look for these; they need no model_config
            raise AttributeError(name)
        model_config = self._model_config_if_possible()
        if model_config is not None and hasattr(model_config, name):
            return getattr(model_config, name)
        raise UnknownFieldError(_unknown(name, ""))

    def __setattr__(self, name: str, value: Any) -> None:
        name = _ALIASES.get(name, name)
        if name == "dp_size":
            object.__setattr__(self, "_derived_dp", None)
        if name in _FIELDS or name.startswith("_"):
            object.__setattr__(self, name, value)
        elif isinstance(getattr(type(self), name, None), property):
            raise UnknownFieldError(f"{name}={value!r} cannot be set: it is read from {_DERIVED[name]}. Set that.")
        else:
            model_config = self._model_config_if_possible()
            if model_config is None or not hasattr(model_config, name):
                raise UnknownFieldError(_unknown(name, f"={value!r}"))
            setattr(model_config, name, value)

    def _model_config_if_possible(self) -> Any:
        try:
            return self.model_config
        except MissingExtraError:
            return None

    @property
    def init_method(self) -> str:
        """The field initization_method, by the name that it should have had."""
        return self.initization_method

    # ---------------------------------------------------------------- what fields mean

    def is_set(self, name: str) -> bool:
        """Return whether model_config, peft_config or quantization_config has been set or read, without making it."""
        return _LAZY[name].raw(self) is not UNSET

    @property
    def uses_peft(self) -> bool:
        """Whether peft_config asks for an adapter. Does not import peft where nothing was set."""
        return self.is_set("peft_config") and getattr(self.peft_config, "peft_type", None) is not None

    @property
    def uses_quantization(self) -> bool:
        """Whether quantization_config asks for 4 or 8 bits. Does not import transformers where nothing was set."""
        if not self.is_set("quantization_config"):
            return False
        asked = self.quantization_config
        return bool(getattr(asked, "load_in_4bit", False) or getattr(asked, "load_in_8bit", False))

    @property
    def deepspeed(self) -> dict[str, Any]:
        """A copy of what ds_config says; empty where it is not set.

        Raises:
            ConfigError: ds_config is neither a dict nor a readable file.
        """
        return _deepspeed.read_ds_config(self.ds_config)

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage that ds_config asks for, 0 … 3; 0 where it does not say."""
        return _deepspeed.zero_stage(self.deepspeed)

    @property
    def monitor_config(self) -> dict[str, Any]:
        """What ds_config says about monitors: {"tag", "csv_monitor", "tensorboard", "wandb"}, each of the last three a
        dict with a bool "enabled"."""
        return _deepspeed.monitor_config(self.deepspeed)

    def validate(self, world_size: int) -> None:
        """Check every value for a world of `world_size` ranks and set `dp_size`.

        A dp_size of 1 becomes world_size / (tp_size × pp_size), with a warning where that is not 1. It may be called
        again, with another world too.

        Raises:
            ConfigError: a value cannot work.
            ParallelSizeError: the sizes do not fit the world.
            MissingExtraError: a value needs a package that is not installed.
        """
        check_values(self)
        derived = self._derived_dp is not None
        dp_size = check_sizes(self, 1 if derived else self.dp_size, world_size, warn=self._derived_dp is None)
        check_batch_size(self, dp_size)
        if derived or dp_size != self.dp_size:
            self.dp_size = dp_size
            object.__setattr__(self, "_derived_dp", dp_size)

    valid_config = validate  # the name that existing scripts call

    # ---------------------------------------------------------------- reading and writing

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Return a configuration whose model_config is read from config.json of a folder or of a name on the hub.

        `kwargs` are fields, fields of model_config, or options of the download (revision, token, cache_dir,
        local_files_only, force_download, proxies, subfolder). `trust_remote_code` is accepted and changes nothing: no
        code of a checkpoint ever runs.

        Raises:
            ConfigError: config.json is missing or not readable, or a keyword is unknown.
            MissingExtraError: transformers is not installed.
        """
        kwargs.pop("trust_remote_code", None)
        hub = {name: kwargs.pop(name) for name in sorted(_makers.HUB_OPTIONS & kwargs.keys())}
        config = cls(model_config=_makers.read_model_config(pretrained_model_name_or_path, **hub))
        config.source = os.fspath(pretrained_model_name_or_path)
        for name, value in kwargs.items():
            setattr(config, name, value)
        return config

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write model_config as `save_directory`/config.json; `kwargs` go to PretrainedConfig.save_pretrained."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.model_config.save_pretrained(os.fspath(save_directory), **kwargs)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Return the configuration in a JSON or YAML file: names and values of fields, or of model_config.

        Raises:
            ConfigError: the file is not readable or has an unknown name.
        """
        return cls(**read_mapping(Path(path), "path"))

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write all fields to a .json, .yaml or .yml file; model_config, peft_config and quantization_config if set.

        Raises:
            ConfigError: the suffix is another.
        """
        write_mapping(Path(path), self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return all fields in the types that JSON has; those made at the first reading only if they are set.

        A dp_size that `validate` derived is 1 again, as it was asked for: another world may read what is written.
        """
        values: dict[str, Any] = {}
        for name in _FIELDS:
            value = _LAZY[name].raw(self) if name in _LAZY else getattr(self, name)
            if value is not UNSET:
                values[name] = plain(_described(value) if name in _LAZY else value)
        if self._derived_dp is not None:
            values["dp_size"] = 1
        return values

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, CollieConfig) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        changed = {}
        for field in fields(self):
            value = _LAZY[field.name].raw(self) if field.name in _LAZY else getattr(self, field.name)
            if value is not UNSET and value != field.default:
                changed[field.name] = type(value).__name__ + "(…)" if field.name in _LAZY else repr(value)
        return f"CollieConfig({', '.join(f'{name}={value}' for name, value in changed.items())})"


_FIELDS = tuple(field.name for field in fields(CollieConfig))
_DERIVED = {
    "deepspeed": "ds_config",
    "zero_stage": "ds_config",
    "monitor_config": "ds_config",
    "uses_peft": "peft_config",
    "uses_quantization": "quantization_config",
}


def load_config(path: str | os.PathLike[str]) -> CollieConfig:
    """Return the CollieConfig in a JSON or YAML file; the same as CollieConfig.from_file."""
    return CollieConfig.from_file(path)


def _described(value: Any) -> Any:
    """Return the dict that describes an object of transformers or peft; other values as they are."""
    if value is None or isinstance(value, Mapping):
        return value
    if callable(to_json := getattr(value, "to_json_string", None)):
        return json.loads(to_json())
    return value.to_dict() if callable(getattr(value, "to_dict", None)) else value


def _unknown(name: str, assigned: str) -> str:
    meant = nearest(name, (*_FIELDS, *_DERIVED, *_ALIASES))
    mend = (
        f"Did you mean {meant!r}?"
        if meant
        else "See the fields of CollieConfig, or set it on a model_config that has it."
    )
    return f"{name}{assigned} is neither a field of CollieConfig nor one of its model_config. {mend}"
