"""Parameters by patterns of their names: which are trained, and which are decayed."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from collie.interfaces import ConfigError
from collie.parallel import active_topology, cut_of, original_of

Patterns = str | Sequence[str]
_NAMES_SHOWN = 5


def freeze(model: nn.Module, patterns: Patterns) -> None:
    """Let the parameters whose names match a pattern no longer be trained. Call it before making an optimizer.

    Args:
        model: any module; of a model that is split, names are those of the whole model, in every layout.
        patterns: one or several, in which `*` stands for any characters, dots included: "layers.*.mlp.*", "embed*".

    Raises:
        ConfigError: a pattern matches no parameter of the model, of any pipeline stage.
    """
    _train(model, patterns, "freeze", chosen=False, others=None)


def train_only(model: nn.Module, patterns: Patterns) -> None:
    """Let the parameters whose names match a pattern be trained, and no others. As `freeze` otherwise."""
    _train(model, patterns, "train_only", chosen=True, others=False)


def param_groups(model: nn.Module, weight_decay: float, no_decay: Patterns) -> list[dict[str, Any]]:
    """Return two parameter groups for a torch optimizer: those that decay, and those that match `no_decay`.

    Without parameters that are frozen. For example `AdamW(param_groups(model, 0.1, no_decay=("*bias", "*norm*")))`.

    Raises:
        ConfigError: none of the patterns matches a parameter.
    """
    patterns = _as_tuple(no_decay)
    if patterns:
        _refuse_strangers(model, patterns, "no_decay", needed=any)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for names, parameter in named(model):
        if parameter.requires_grad:
            groups[int(_matches(names, patterns))]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def named(model: nn.Module) -> Iterator[tuple[tuple[str, str], nn.Parameter]]:
    """Yield each parameter with its name in this module, and with that in the model before it was split."""
    for name, parameter in model.named_parameters():
        cut = cut_of(parameter)
        yield (name, original_of(parameter) or (cut.name if cut is not None else name)), parameter


def on_any_stage(here: bool) -> bool:
    """Whether something is true of one of a replica's pipeline stages. Collective over them."""
    group = active_topology().pp_group
    if group is None:
        return here
    count = torch.tensor(int(here))
    dist.all_reduce(count, group=group)
    return bool(count)


def _train(model: nn.Module, patterns: Patterns, what: str, *, chosen: bool, others: bool | None) -> None:
    patterns = _as_tuple(patterns)
    if not patterns:
        raise ConfigError(f"{what} got no pattern. Give parts of names, such as 'layers.*.mlp.*'.")
    _refuse_strangers(model, patterns, what, needed=all)
    for names, parameter in named(model):
        wanted = chosen if _matches(names, patterns) else others
        if wanted is not None:
            parameter.requires_grad_(wanted)


def _as_tuple(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _refuse_strangers(model: nn.Module, patterns: tuple[str, ...], what: str, *, needed: Any) -> None:
    """Refuse patterns of which not all, or not any, match. Collective over pipeline stages, which agree on it."""
    known = sorted({name for names, _ in named(model) for name in names})
    group = active_topology().pp_group
    if group is not None:
        of_stages: list[list[str]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(of_stages, known, group=group)
        known = sorted({name for names in of_stages for name in names})
    found = [_matches(known, [pattern]) for pattern in patterns]
    if needed(found):
        return
    stranger = patterns[found.index(False)]
    near = get_close_matches(stranger.strip("*"), known, n=_NAMES_SHOWN, cutoff=0.3) or known[:_NAMES_SHOWN]
    raise ConfigError(
        f"{what}={stranger!r} matches no parameter. `*` stands for any characters; names are such as {', '.join(near)}."
    )
