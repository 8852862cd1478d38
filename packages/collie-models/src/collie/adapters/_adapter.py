"""The adapter that a model has: what is PEFT's of it, and how each of its tensors is called and stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from collie.adapters._targets import Sites
from collie.models import CollieModelForCausalLM
from collie.models.weights import Rename, Rows

_PREFIX = "base_model.model."  # of PEFT's files: the tuner, and in it the model
_ROWS_OF_THE_OUTPUT = ("lora_B", "lora_magnitude_vector", "ia3_l")


@dataclass(frozen=True)
class Stored:
    """A tensor in PEFT's file.

    key: its name there.
    shape: of the whole tensor.
    rows: of the file's tensor, those that ours consists of, in our order.
    """

    key: str
    shape: torch.Size
    rows: Rows


@dataclass(frozen=True)
class Adapter:
    """One adapter of a model.

    name: "default" unless the user gave another.
    config: PEFT's, with modules called as in transformers' model.
    layers: our names of the modules that have a layer of PEFT around them, in all pipeline stages.
    stored: by the parameter's name in a model that is not split, everything that belongs to the adapter.
    in_place: those of them that are parameters of the model itself.
    frozen: parameters of the model that did not train before there was an adapter.
    """

    name: str
    config: Any
    layers: tuple[str, ...]
    stored: Mapping[str, Stored]
    in_place: frozenset[str]
    frozen: frozenset[str]


_adapters: WeakKeyDictionary[nn.Module, Adapter] = WeakKeyDictionary()


def adapter_of(model: nn.Module) -> Adapter | None:
    """Return the adapter of a model of `collie.models`, or None where it has none."""
    return _adapters.get(model)


def remember(model: nn.Module, adapter: Adapter) -> None:
    """Let `adapter_of` find it."""
    _adapters[model] = adapter


def forget(model: nn.Module) -> None:
    """Let `adapter_of` find none."""
    _adapters.pop(model, None)


def stored_tensors(sites: Sites, whole: CollieModelForCausalLM, adapter: str) -> dict[str, Stored]:
    """Describe the tensors of an adapter's layers, for a model on `meta` that nobody has split."""
    checkpoint_names = {ours: name for name, ours in sites.modules.items()}
    stored: dict[str, Stored] = {}
    for name, layer in sites.layers.items():
        _, entry = whole.names.to_checkpoint(f"{name}.weight")
        for inner, parameter in layer.named_parameters():
            if inner.startswith(("base_layer.", "ranknum.")):  # the latter PEFT does not save
                continue
            key = f"{_PREFIX}{checkpoint_names[name]}.{_key(inner, adapter)}"
            stored[f"{name}.{inner}"] = Stored(key, parameter.shape, _rows(inner, parameter, entry, whole.config))
    return stored


def stored_in_place(modules: frozenset[str], whole: CollieModelForCausalLM) -> dict[str, Stored]:
    """Describe the tensors of modules that are trained themselves."""
    stored: dict[str, Stored] = {}
    for module in sorted(modules):
        for inner, parameter in whole.get_submodule(module).named_parameters():
            name, entry = whole.names.to_checkpoint(f"{module}.{inner}")
            rows = entry.rows(whole.config, parameter.shape[0])
            stored[f"{module}.{inner}"] = Stored(f"{_PREFIX}{name}", parameter.shape, rows)
    return stored


def _key(inner: str, adapter: str) -> str:
    """PEFT leaves the adapter's name out, and the "weight" of DoRA's magnitudes."""
    parts = [part for part in inner.split(".") if part != adapter]
    return parts[0] if parts[0] == "lora_magnitude_vector" else ".".join(parts)


def _rows(inner: str, parameter: nn.Parameter, entry: Rename, config: Any) -> Rows:
    """What stands for the outputs of a fused map is in the order in which we have these."""
    total = parameter.shape[0]
    return entry.rows(config, total) if inner.startswith(_ROWS_OF_THE_OUTPUT) and total > 1 else [(0, total)]
