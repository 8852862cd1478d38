"""The model that an adapter makes of a model, without the adapter: each rank changes what it holds."""

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from collie.adapters._adapter import Adapter, adapter_of, forget
from collie.adapters._dora import adapted_norms, maps_of
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM, is_quantized
from collie.parallel import (
    RowLinear,
    Topology,
    active_topology,
    close_engine,
    engine_for,
    replace_part,
    whole_name,
    whole_part,
)

Model = TypeVar("Model", bound=CollieModelForCausalLM)

_MAGNITUDE = "lora_magnitude_vector"


@torch.no_grad()
def merge(model: Model) -> Model:
    """Add a model's adapter to its weights and take the adapter away, in place. Collective; returns `model`.

    Sums are made in float32, one linear map at a time; under ZeRO-3 a rank gathers its part of that. All parameters
    train again, but for those that were frozen before. An optimizer of the adapter's parameters is of no use then.

    Raises:
        ConfigError: the model has no adapter.
    """
    adapter = adapter_of(model)
    if adapter is None:
        raise ConfigError("the model has no adapter to merge.")
    if is_quantized(model):
        raise ConfigError(
            "merge: the weights are quantized, and sums with them would be rounded to 4 or 8 bits. Save the adapter, "
            "load it into a model without quantization_config, and merge it there."
        )
    topology = active_topology()
    close_engine(model)
    here = {name for name, _ in model.named_modules()}
    for name in adapter.layers:
        if name in here:
            _merge_layer(model, name, adapter, topology)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(whole_name(name, parameter) not in adapter.frozen)
    forget(model)
    if model.collie_config.zero_stage == 3:
        engine_for(model, model.collie_config)
    return model


def _merge_layer(model: CollieModelForCausalLM, name: str, adapter: Adapter, topology: Topology) -> None:
    layer = model.get_submodule(name)
    base = layer.get_submodule("base_layer")
    if hasattr(layer, "ia3_l"):
        _merge_scales(layer, cast(nn.Linear, base), adapter.name, topology)
    elif isinstance(layer.lora_A, nn.ParameterDict):
        _merge_triplet(layer, base, adapter.name, topology)
    else:
        _merge_lora(layer, base, adapter.name, topology)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, base)


def _merge_lora(layer: nn.Module, base: nn.Module, adapter: str, topology: Topology) -> None:
    first, second = layer.get_submodule(f"lora_A.{adapter}"), layer.get_submodule(f"lora_B.{adapter}")
    scaling: float = layer.scaling[adapter]  # type: ignore[index, assignment]  # PEFT's dict
    down = _float(first, "weight", topology)
    magnitudes = list(getattr(layer, _MAGNITUDE)[adapter].parameters()) if adapter in getattr(layer, _MAGNITUDE) else []
    for index, (map_, up) in enumerate(zip(maps_of(base), maps_of(second), strict=True)):
        weight = _float(map_, "weight", topology)
        delta = _float(up, "weight", topology) @ down * scaling
        merged = weight + delta
        if magnitudes:
            norms = adapted_norms(weight, delta, topology.tp_group if isinstance(base, RowLinear) else None)
            merged = merged * (whole_part(magnitudes[index], topology).float() / norms).unsqueeze(1)
        replace_part(map_.get_parameter("weight"), merged, topology)
        if up.bias is not None:
            bias = _float(map_, "bias", topology) + _float(up, "bias", topology) * scaling
            replace_part(map_.get_parameter("bias"), bias, topology)


def _merge_scales(layer: nn.Module, base: nn.Linear, adapter: str, topology: Topology) -> None:
    """(IA)³: outputs are scaled, their bias included, or in a feed-forward layer inputs (Liu et al. 2022)."""
    scale = _float(layer.get_submodule("ia3_l"), adapter, topology)
    replace_part(base.get_parameter("weight"), _float(base, "weight", topology) * scale, topology)
    if base.bias is not None and not layer.is_feedforward:
        replace_part(base.get_parameter("bias"), _float(base, "bias", topology) * scale.flatten(), topology)


def _merge_triplet(layer: nn.Module, base: nn.Module, adapter: str, topology: Topology) -> None:
    """AdaLoRA's P·Λ·Q, as PEFT scales it."""
    names = ("lora_A", "lora_E", "lora_B", "ranknum")
    q, diagonal, p, rank = (_float(layer.get_submodule(name), adapter, topology) for name in names)
    scaling: float = layer.scaling[adapter]  # type: ignore[index, assignment]  # PEFT's dict
    delta = p @ (q * diagonal) * scaling / (rank + 1e-5)
    replace_part(base.get_parameter("weight"), _float(base, "weight", topology) + delta, topology)


def _float(module: nn.Module, name: str, topology: Topology) -> Tensor:
    return whole_part(module.get_parameter(name), topology).float()
