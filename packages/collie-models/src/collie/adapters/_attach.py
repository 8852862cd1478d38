"""An adapter for a model that has its weights, in any layout."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from collie.adapters._adalora import allocate_ranks
from collie.adapters._adapter import Adapter, adapter_of, remember, stored_in_place, stored_tensors
from collie.adapters._dora import Magnitude, adapted_norms
from collie.adapters._parts import divide
from collie.adapters._prompts import wrap_with_prompts
from collie.adapters._supported import PROMPTS, kind_of, refuse_unsupported
from collie.adapters._targets import Sites, find_sites
from collie.adapters._values import initial_values
from collie.interfaces import ConfigError, ParallelSizeError
from collie.models import CollieModelForCausalLM, is_quantized
from collie.parallel import (
    Stages,
    Topology,
    active_topology,
    borrow,
    close_engine,
    current_engine,
    full_parameters,
    is_added,
    mark_added,
    materialise,
    share_over_stage,
    whole_name,
)

_MAGNITUDE = "lora_magnitude_vector"


def add_adapter(model: CollieModelForCausalLM, peft_config: Any, adapter_name: str = "default") -> nn.Module:
    """Put PEFT's layers around a model's linear maps and freeze all else, in place. Collective; returns `model`.

    Prompts that are learnt (PROMPT_TUNING, PREFIX_TUNING, P_TUNING) are no layers: there what returns is PEFT's
    PeftModelForCausalLM around `model`.

    Names in the config are those of transformers' model (of the checkpoint, where transformers has none of the
    family) or ours. The values are the same in every layout. Modules in `modules_to_save` are trained in place: PEFT
    makes copies of them, to turn the adapter off, which here does not turn those off.

    Args:
        model: made by `from_pretrained` or `from_config`; without an optimizer yet.
        peft_config: LoRA (rsLoRA and DoRA among it) in every layout, AdaLoRA, IA3 and prompts where tp_size and pp_size
            are 1. With inference_mode nothing is trained.
        adapter_name: what PEFT calls it; it is not in saved files.

    Raises:
        ConfigError: the config asks for what is not there, or the model has an adapter or an optimizer.
        ParallelSizeError: the layout does not suit the adapter.
    """
    config = model.collie_config
    refuse_unsupported(peft_config, config)
    if kind_of(peft_config) == "ADALORA" and model.dtype is torch.float16:
        raise ConfigError("AdaLoRA adds to gradients what float16's loss scaling does not reach. Use bfloat16.")
    _refuse_used(model)
    if kind_of(peft_config) in PROMPTS:
        return wrap_with_prompts(model, peft_config, adapter_name)
    topology = active_topology()
    with torch.device("meta"):
        whole = type(model)(config)
    sites = find_sites(whole, peft_config, adapter_name)
    if is_quantized(model):
        _refuse_on_quantized(sites)
    if model.stages is not None:
        _refuse_idle_stages(sites, model.stages)
    frozen = frozenset(whole_name(name, p) for name, p in model.named_parameters() if not p.requires_grad)
    in_place = stored_in_place(sites.in_place, whole)
    stored = stored_tensors(sites, whole, adapter_name) | in_place
    dtype = model.dtype
    norms = _row_norms(model, sites, adapter_name, topology)
    close_engine(model)
    for name, layer in _present(model, sites):
        _wrap(model, name, layer, adapter_name, topology)
    _choose_trained(model, frozenset(in_place), trains=not peft_config.inference_mode)
    materialise(model, config, topology, dtype, initial_values(sites.config, config, dtype, norms))
    for _, layer in _present(model, sites):
        _borrow(layer, adapter_name)
    if kind_of(peft_config) == "ADALORA" and not peft_config.inference_mode:
        allocate_ranks(model, dict(_present(model, sites)), adapter_name, sites.config, config)
    remember(model, Adapter(adapter_name, sites.config, tuple(sites.layers), stored, frozenset(in_place), frozen))
    return model


def _refuse_used(model: CollieModelForCausalLM) -> None:
    adapter, engine = adapter_of(model), current_engine(model)
    if adapter is not None:
        raise ConfigError(
            f"the model has the adapter {adapter.name!r} already: one at a time. Merge it first, or load into it."
        )
    hooks = (getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in model.parameters())
    if (engine is not None and engine.trains) or any(hooks):
        raise ConfigError(
            "an adapter is a set of new parameters, and an optimizer holds the model's present ones. "
            "Add the adapter before the optimizer and the Trainer are made."
        )


def _refuse_on_quantized(sites: Sites) -> None:
    if getattr(sites.config, "use_dora", False):
        raise ConfigError("use_dora=True: magnitudes are of whole rows, and the weights are quantized. Use LoRA.")
    if inside := sorted(name for name in sites.in_place if name.startswith("layers.")):
        raise ConfigError(
            f"modules_to_save has {inside[0]}, which is quantized and cannot be trained. Leave it out, or name it in "
            f"llm_int8_skip_modules of quantization_config."
        )


def _refuse_idle_stages(sites: Sites, stages: Stages) -> None:
    """Every pipeline rank must have something to train: each makes an optimizer, and all of them step together."""
    idle = []
    for rank in range(stages.ranks):
        layers = {name for stage, names in enumerate(stages.layers) if stages.rank_of(stage) == rank for name in names}
        own = {f"layers.{name}." for name in layers} | ({"embed"} if rank == 0 else set())
        own |= {"norm", "head"} if rank == stages.ranks - 1 else set()
        if not any(name.startswith(tuple(own)) for name in {*sites.layers, *sites.in_place}):
            idle.append(str(rank))
    if idle:
        raise ParallelSizeError(
            f"the adapter changes nothing in the layers of pipeline rank {' and '.join(idle)}, which would have "
            f"nothing to train. Set pp_size to 1, or let layers_to_transform name layers of every stage."
        )


def _present(model: CollieModelForCausalLM, sites: Sites) -> Iterator[tuple[str, nn.Module]]:
    """Yield the sites that are on this pipeline rank."""
    here = {name for name, _ in model.named_modules()}
    return ((name, layer) for name, layer in list(sites.layers.items()) if name in here)


def _row_norms(model: CollieModelForCausalLM, sites: Sites, adapter: str, topology: Topology) -> dict[str, Tensor]:
    """Return the norms that DoRA's magnitudes begin with, by their name, on every rank of the stage. Collective."""
    if not getattr(sites.config, "use_dora", False):
        return {}
    weights = {f"{name}.weight": f"{name}.{_MAGNITUDE}.{adapter}.weight" for name, _ in _present(model, sites)}
    norms: dict[str, Tensor] = {}
    for name, weight in full_parameters(model, topology, only=lambda name, parameter: name in weights):
        own = adapted_norms(weight, torch.zeros((), dtype=weight.dtype), None) if weight is not None else None
        norms[weights[name]] = share_over_stage(own, topology)
    return norms


def _wrap(model: CollieModelForCausalLM, name: str, layer: nn.Module, adapter: str, topology: Topology) -> None:
    """Put a layer of PEFT around the module `name` of this rank, with what the rank needs of its parameters."""
    part = model.get_submodule(name)
    if isinstance(getattr(layer, "lora_A", None), nn.ModuleDict):
        divide(layer, adapter, name, part, topology)
    magnitudes = getattr(layer, _MAGNITUDE, {})
    if adapter in magnitudes:
        outputs = magnitudes[adapter].weight.shape[0]
        magnitudes[adapter] = Magnitude(f"{name}.{_MAGNITUDE}.{adapter}.weight", outputs, part, topology)
    layer.base_layer = part
    for inner, parameter in layer.named_parameters():
        if not inner.startswith("base_layer."):
            mark_added(parameter)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer.train(part.training))


def _borrow(layer: nn.Module, adapter: str) -> None:
    """Tell ZeRO-3 which layers use parameters that are not their own, or that lie in a ParameterDict, never called."""
    magnitudes = getattr(layer, _MAGNITUDE, {})
    if adapter in magnitudes:
        maps = (getattr(layer, name) for name in ("base_layer", "lora_A", "lora_B"))
        borrow(magnitudes[adapter], (parameter for map_ in maps for parameter in map_.parameters()))
    for own in (module for module in layer.children() if isinstance(module, nn.ParameterDict)):
        borrow(layer, own.parameters())


def _choose_trained(model: CollieModelForCausalLM, in_place: frozenset[str], trains: bool) -> None:
    for name, parameter in model.named_parameters():
        chosen = is_added(parameter) and ".ranknum." not in name  # AdaLoRA's, a constant
        parameter.requires_grad_(trains and (chosen or whole_name(name, parameter) in in_place))
