"""From a config to a model with weights, in steps that can each be called alone.

build on `meta` → keep this pipeline rank's stages → split by the tensor-parallel plan → materialise → load.
`refuse_unsupported` says before any of it what cannot be done.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from transformers import PretrainedConfig

from collie.config import CollieConfig
from collie.interfaces import ConfigError, ParallelSizeError
from collie.models._quantize import check_quantization, is_quantized, quantize_on_the_way
from collie.models._stages import keep_stages
from collie.models.weights import Checkpoint, local_folder, open_reader
from collie.parallel import Fill, Plan, Stream, Topology, is_added, mark_copy, materialise, together

if TYPE_CHECKING:
    from collie.models.base import CollieModelForCausalLM

    Model = TypeVar("Model", bound=CollieModelForCausalLM)


def refuse_unsupported(family: "type[Model]", config: CollieConfig) -> None:
    """Say what this version does not do, before any weight is made. The sizes must have been found to fit the world.

    Raises:
        ParallelSizeError: the config asks to split a family that has no plan for it.
        ConfigError: the config asks for an adapter or a quantization that is not there.
    """
    stage_3 = "" if config.zero_stage == 3 else ", and ZeRO stage 3 in ds_config where the model does not fit"
    if config.tp_size != 1 and own_plan(family) is None:
        raise ParallelSizeError(
            f"tp_size={config.tp_size}: {family.__name__} has no plan for tensor parallelism. "
            f"Set tp_size to 1{stage_3}."
        )
    if config.uses_peft:
        from collie.adapters import refuse_unsupported as refuse_adapter

        refuse_adapter(config.peft_config, config)
    if getattr(config.model_config, "quantization_config", None):
        raise ConfigError(
            "the checkpoint's config.json has a quantization_config: its weights are quantized already, and CoLLiE's "
            "own models quantize what they read. Give a checkpoint in bfloat16, float16 or float32."
        )
    if config.uses_quantization:
        check_quantization(config)


def give_weights(
    model: "CollieModelForCausalLM", config: CollieConfig, topology: Topology, dtype: torch.dtype, fill: Fill
) -> None:
    """Materialise a model, its linear maps quantized where the config asks for it."""
    if config.uses_quantization:
        quantize_on_the_way(model, topology, dtype, fill)
    materialise(model, config, topology, dtype, fill)


def adapted(model: "Model") -> "Model":
    """Return a model that has its weights with the adapter that its config asks for, if it asks for one. Collective.

    Where prompts are learnt it is PEFT's wrapper, which has the model's attributes, too.

    Raises:
        ConfigError, ParallelSizeError: see `collie.adapters.add_adapter`.
    """
    if not model.collie_config.uses_peft:
        return model
    from collie.adapters import add_adapter  # which is built on models

    return cast("Model", add_adapter(model, model.collie_config.peft_config))


def refuse_unmerged(model: "CollieModelForCausalLM", doing: str) -> None:
    """Refuse to do with the weights alone what would leave a model's adapter out, or needs them unquantized.

    Raises:
        ConfigError: the model has an adapter, or quantized weights; `doing` begins the sentence.
    """
    refuse_quantized(model, doing)
    if any(is_added(parameter) for parameter in model.parameters()):
        raise ConfigError(
            f"{doing}: the model has an adapter, which is no part of its weights. Save the adapter with "
            f"collie.adapters.save_peft, or merge it into the weights with collie.adapters.merge first."
        )


def refuse_quantized(model: "CollieModelForCausalLM", doing: str) -> None:
    """Refuse to write or to replace quantized weights.

    Raises:
        ConfigError: the model has some; `doing` begins the sentence.
    """
    if is_quantized(model):
        raise ConfigError(
            f"{doing}: the weights are quantized. Save the adapter with collie.adapters.save_peft, and load it into a "
            f"model without quantization_config for all else."
        )


def own_plan(family: "type[Model]") -> Plan | None:
    """Return the family's own tensor-parallel plan.

    One that it inherits does not count: its blocks may hold what the table of the family above does not name.
    """
    return vars(family).get("plan")


def build(family: "type[Model]", config: CollieConfig) -> "Model":
    """Return a model whose parameters have shapes and no storage."""
    with torch.device("meta"):
        return family(config)


def split(model: "CollieModelForCausalLM", topology: Topology) -> None:
    """Leave of a model on `meta` what this rank holds: its stages, and of these its part by the family's plan.

    Raises:
        ParallelSizeError: so many ranks cannot divide its layers, its heads or its inner sizes.
    """
    plan = own_plan(type(model)) if topology.tp_size > 1 else None
    if plan is not None:
        plan.check(model, topology.tp_size, model.config.model_type)
    tied = model.head.weight is model.embed.weight
    keep_stages(model, topology)
    if plan is not None:
        model.stream = Stream(topology, sequence=model.collie_config.sequence_parallel)
        plan.apply(model, topology, model.stream)
    if tied and model.embed is None and model.head is not None:
        mark_copy(model.head.weight, "embed.weight")


def read_from(folder: Path, model: "CollieModelForCausalLM", dtype: torch.dtype) -> Fill:
    """Check a checkpoint against a model, from headers alone, and return what fills the model's parameters from it.

    Args:
        folder: a Hugging Face folder.
        model: on `meta`, or with weights in any layout.
        dtype: of the values to come.

    Raises:
        CheckpointError: there is no checkpoint, or a tensor is missing or misshapen.
    """
    # a split model has parts of parameters, and under ZeRO-3 a parameter's own shape is (0,)
    template = build(type(model), model.collie_config)
    shapes = {name: parameter.shape for name, parameter in template.named_parameters()}
    every = (name for name, _ in template.named_parameters(remove_duplicate=False))
    tied = [name for name in every if name not in shapes]
    return Checkpoint(open_reader(folder), model.names, model.config, shapes, tied).fill(dtype)


def read_alike(
    path_or_name: str | Path, model: "CollieModelForCausalLM", dtype: torch.dtype, topology: Topology, **hub: Any
) -> Fill:
    """Return `read_from` of a folder or a repository of the Hub, where every rank can read it. Collective.

    Raises:
        CheckpointError: a rank cannot; on every rank, with the same words.
    """
    fills: list[Fill] = []  # they stay on their ranks

    def read() -> None:
        fills.append(read_from(local_folder(path_or_name, **hub), model, dtype))

    together(topology, f"{path_or_name} could not be read", read)
    return fills[0]


def require_values(model_config: PretrainedConfig, **expected: Any) -> None:
    """Refuse a config that asks for a variant which its family does not build; a field it does not have is no matter.

    Raises:
        ConfigError: one of the fields has another value than expected.
    """
    for field, value in expected.items():
        if (asked := getattr(model_config, field, value)) != value:
            raise ConfigError(
                f"{field}={asked!r} in the config of model_type {model_config.model_type!r} is not supported: this "
                f"family is built for {field}={value!r} alone."
            )
