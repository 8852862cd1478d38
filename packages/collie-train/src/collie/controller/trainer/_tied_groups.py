"""A tied weight that two pipeline stages hold: both copies get the update that one process gives the weight."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.parallel import Topology

_Options = dict[str, Any]


def group_alike(model: CollieModelForCausalLM, optimizer: torch.optim.Optimizer, topology: Topology) -> None:
    """Put the last stage's copy of a tied weight into the param group that has the options of the first stage's.

    By its own name, head.weight, it may have got another learning rate or weight decay, and the copies would drift
    apart. In one process the weight is called embed.weight, so what the optimizer has of that counts; where that is
    nothing, the copy leaves the optimizer, too. Collective over the pipeline stages.

    Raises:
        ConfigError: no group of the last stage's optimizer has these options; on every rank.
    """
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    weights = [part.get_parameter("weight") if part is not None else None for part in (model.embed, model.head)]
    mine = [_options(group) for group in optimizer.param_groups], [_place(optimizer, weight) for weight in weights]
    of_stages: list[Any] = [None] * topology.pp_size
    dist.all_gather_object(of_stages, mine, group=topology.pp_group)
    (of_first, (original, _)), (of_last, (_, copy)) = of_stages[0], of_stages[-1]
    if original is None:
        target = None
    else:
        target = _like(of_first[original], of_last, near=original)
        if target is None:
            raise ConfigError(
                f"tie_word_embeddings: embed.weight is on the first pipeline stage in a param group with "
                f"{_said(of_first[original])}, and its copy head.weight is on the last, where no group has these. "
                f"Give the optimizer the same groups on every stage, those without parameters, too."
            )
    if model.head is not None and target != copy:
        _move(optimizer, model.head.get_parameter("weight"), copy, target)


def _place(optimizer: torch.optim.Optimizer, weight: nn.Parameter | None) -> int | None:
    """The number of the group that has the weight."""
    if weight is None:
        return None
    found = [n for n, group in enumerate(optimizer.param_groups) if any(p is weight for p in group["params"])]
    return found[0] if found else None


def _like(wanted: _Options, groups: Sequence[_Options], near: int) -> int | None:
    """The number of a group with these options: the one at the same place, where it has them, else the first."""
    found = [number for number, options in enumerate(groups) if options == wanted]
    return near if near in found else next(iter(found), None)


def _move(optimizer: torch.optim.Optimizer, weight: nn.Parameter, source: int | None, target: int | None) -> None:
    name = "head.weight"
    if source is not None:
        group = optimizer.param_groups[source]
        at = [parameter is weight for parameter in group["params"]].index(True)
        del group["params"][at]
        if "param_names" in group:
            name = group["param_names"].pop(at)
    if target is not None:
        group = optimizer.param_groups[target]
        group["params"].append(weight)
        if "param_names" in group:
            group["param_names"].append(name)


def _options(group: dict[str, Any]) -> _Options:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _said(options: _Options) -> str:
    return ", ".join(f"{key}={options[key]}" for key in ("lr", "weight_decay") if key in options) or str(options)
