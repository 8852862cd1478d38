"""Which modules an adapter changes, and PEFT's layers for them, made without the model.

PEFT sees a tree of empty linear maps that are called and arranged as in the family's checkpoints, which is as in
transformers' models where it has the family. So its own rules decide what a config means (patterns, excluded modules,
ranks by name), whatever our modules are called and however ranks divide them.
"""

import copy
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from collie.adapters._supported import peft_module
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM

_DEFAULTS = {  # where peft's own tables lack a family: what they have for those like it
    "target_modules": (r".*\.attention\.(q|v|qkv)", r".*\.attention\.(k|v|qkv)|.*\.mlp\.down"),
    "feedforward_modules": ("", r".*\.mlp\.down"),
}


@dataclass(frozen=True)
class Sites:
    """What an adapter does to the whole model, in no layout yet.

    layers: by the name of our module, PEFT's layer in its place; parameters are on `meta`, `base_layer` an empty map.
    in_place: our modules that are trained themselves (modules_to_save).
    modules: by the checkpoint's name of each of the model's linear maps, ours.
    config: PEFT's, with names that it finds in transformers' model.
    """

    layers: Mapping[str, nn.Module]
    in_place: frozenset[str]
    modules: Mapping[str, str]
    config: Any


def find_sites(whole: CollieModelForCausalLM, asked: Any, adapter: str) -> Sites:
    """Let PEFT make an adapter's layers.

    Args:
        whole: a model on `meta` that nobody has split.
        asked: a PeftConfig of a kind that changes linear maps.
        adapter: its name.

    Raises:
        ConfigError: a name in the config is no module's, or the module cannot be changed.
    """
    peft = peft_module()
    modules = _by_checkpoint_name(whole)
    config = copy.deepcopy(asked)
    for field in ("target_modules", "feedforward_modules", "exclude_modules"):
        if hasattr(config, field):
            setattr(config, field, _named(field, getattr(config, field), modules, whole, config))
    in_place = _in_place(config, modules, whole)
    injected = copy.deepcopy(config)
    injected.modules_to_save = None
    tree = _tree({name: ours for name, ours in modules.items() if ours not in in_place}, whole)
    try:
        with torch.device("meta"):
            peft.inject_adapter_in_model(injected, tree, adapter)
    except ValueError as error:
        raise ConfigError(f"peft_config is refused by peft: {error}") from error
    tuner_layer = peft.tuners.tuners_utils.BaseTunerLayer
    layers = {modules[name]: layer for name, layer in tree.named_modules() if isinstance(layer, tuner_layer)}
    _refuse_ends(layers, whole)
    return Sites(layers, in_place, modules, config)


def _by_checkpoint_name(whole: CollieModelForCausalLM) -> dict[str, str]:
    """Return the checkpoint's name of every module that has a weight, and ours."""
    named: dict[str, str] = {}
    for name, module in whole.named_modules():
        if getattr(module, "weight", None) is not None:
            named[whole.names.to_checkpoint(f"{name}.weight")[0].removesuffix(".weight")] = name
    return named


def _tree(modules: Mapping[str, str], whole: CollieModelForCausalLM) -> nn.Module:
    """Return empty copies of the linear maps and embeddings, under the checkpoint's names."""
    root = nn.Module()
    for name, ours in modules.items():
        module = whole.get_submodule(ours)
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        if isinstance(module, nn.Linear):
            bias = module.bias is not None
            place.add_module(last, nn.Linear(module.in_features, module.out_features, bias, device="meta"))
        elif isinstance(module, nn.Embedding):
            place.add_module(last, nn.Embedding(module.num_embeddings, module.embedding_dim, device="meta"))
    return root


def _named(
    field: str, asked: Any, modules: Mapping[str, str], whole: CollieModelForCausalLM, config: Any
) -> str | set[str] | None:
    """Return names or a pattern that PEFT matches against the checkpoint's names.

    Names are the checkpoint's, or ours; None is PEFT's choice for the family, "all-linear" all maps but the head.
    """
    if asked is None and field == "exclude_modules":
        return None
    if asked is None:
        return _chosen(field, modules, whole, config)
    if asked == "all-linear":
        linear = {name for name, ours in modules.items() if isinstance(whole.get_submodule(ours), nn.Linear)}
        head = {name for name, ours in modules.items() if whole.get_submodule(ours) is whole.get_output_embeddings()}
        return shortened(linear - head, modules)
    if isinstance(asked, str):
        if any(re.fullmatch(asked, name) for name in modules):
            return asked
        found = {name for name, ours in modules.items() if re.fullmatch(asked, ours)}
        return shortened(found, modules) if found else _unknown(field, asked, modules)
    names: set[str] = set()
    for one in asked:
        found = {name for name, ours in modules.items() if _ends_with(ours, one)}
        if any(_ends_with(name, one) for name in modules):
            names.add(one)
        else:
            names |= shortened(found, modules) if found else _unknown(field, one, modules)
    return names


def _chosen(field: str, modules: Mapping[str, str], whole: CollieModelForCausalLM, config: Any) -> set[str]:
    """Return what PEFT's tables say for the family, or where they lack it, what they say for its kind."""
    constants = peft_module().utils.constants
    ia3 = hasattr(config, "feedforward_modules")
    kind = "IA3" if ia3 else "LORA"
    what = "FEEDFORWARD" if field == "feedforward_modules" else "TARGET"
    table = getattr(constants, f"TRANSFORMERS_MODELS_TO_{kind}_{what}_MODULES_MAPPING")
    known: list[str] = table.get(whole.config.model_type, [])
    if known and all(any(_ends_with(name, one) for name in modules) for one in known):
        return set(known)
    pattern = _DEFAULTS[field][ia3]
    return shortened({name for name, ours in modules.items() if re.fullmatch(pattern, ours)}, modules)


def _in_place(config: Any, modules: Mapping[str, str], whole: CollieModelForCausalLM) -> frozenset[str]:
    """Return our names of the modules that the config wants trained whole, and give it the checkpoint's."""
    asked: Iterable[str] | None = getattr(config, "modules_to_save", None)
    if not asked:
        return frozenset()
    names = _named("modules_to_save", list(asked), modules, whole, config)
    assert isinstance(names, set)
    config.modules_to_save = sorted(names)
    chosen = frozenset(ours for name, ours in modules.items() if any(_ends_with(name, one) for one in names))
    tied = getattr(whole.config, "tie_word_embeddings", False)
    ends = {ours for ours in chosen if whole.get_submodule(ours) in _ends(whole)}
    if tied and ends:
        raise ConfigError(
            f"modules_to_save={config.modules_to_save}: embedding and head of this model are one weight, which PEFT "
            f"would make two of. Leave {', '.join(sorted(ends))} out, or untie them in a checkpoint with "
            f"tie_word_embeddings=False."
        )
    return chosen


def _refuse_ends(layers: Collection[str], whole: CollieModelForCausalLM) -> None:
    ends = sorted(name for name in layers if whole.get_submodule(name) in _ends(whole))
    if ends:
        raise ConfigError(
            f"target_modules names {', '.join(ends)}: the head computes the loss without its logits, and the ranks "
            f"divide the vocabulary. Put it into modules_to_save, which trains all of it."
        )


def _ends(whole: CollieModelForCausalLM) -> tuple[nn.Module, ...]:
    return whole.get_input_embeddings(), whole.get_output_embeddings()


def shortened(names: Collection[str], modules: Mapping[str, str]) -> set[str]:
    """Return the last parts of names where they name these and no other module, else the names."""
    last = {name.rpartition(".")[2] for name in names}
    return (
        last if {name for name in modules if any(_ends_with(name, one) for one in last)} == set(names) else set(names)
    )


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _unknown(field: str, asked: str, modules: Mapping[str, str]) -> set[str]:
    theirs, ours = (sorted({name.rpartition(".")[2] for name in names}) for names in (modules, modules.values()))
    raise ConfigError(
        f"{field} has {asked!r}, which no module of this model is called. Use the checkpoint's names "
        f"({', '.join(theirs)}) or ours ({', '.join(ours)})."
    )
