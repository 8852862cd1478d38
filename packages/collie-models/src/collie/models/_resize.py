"""Another number of tokens for a model that has weights, in any layout.

Each rank keeps its modules and gets new parameters in them: on `meta` first, then materialised as when the model was
made. The old values are gathered on a stage's leader, and the new ones pass through the CPU of each of its ranks whole.
What can fail comes before the old parameters are touched, and is agreed upon: every rank resizes, or none does.
"""

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from collie.config import CollieConfig
from collie.models._initialise import generator_for, initialiser
from collie.module import LMHead
from collie.parallel import (
    Topology,
    active_topology,
    close_engine,
    current_engine,
    full_parameters,
    materialise,
    resize_vocabulary,
    share_over_stage,
    together,
    together_in_stage,
)

if TYPE_CHECKING:
    from collie.models.base import CollieModelForCausalLM

# V vocabulary, E hidden, A added rows, D rows drawn at a time

_SPREAD = 1e-9  # of added rows around the mean, as a part of the old rows' covariance: as in transformers
_DRAWN = 2**24  # random numbers held at a time


def resize(
    model: "CollieModelForCausalLM", new_num_tokens: int | None, pad_to_multiple_of: int | None, mean_resizing: bool
) -> None:
    """See `CollieModelForCausalLM.resize_token_embeddings`."""
    total = _size(model.config.vocab_size, new_num_tokens, pad_to_multiple_of)
    if total == model.config.vocab_size:
        return
    holder = nn.ModuleDict(_vocabularies(model))
    topology, dtype = active_topology(), model.dtype
    _refuse_trained(model, holder, topology)
    initialiser(model.collie_config, dtype)  # what is wrong with its settings is said before anything is gathered
    values: dict[str, Tensor] = {}

    def make() -> None:
        values.update(_new_values(holder, total, model.collie_config, topology, mean_resizing))

    together(topology, "The vocabulary could not be resized", make)

    def fill(name: str, shape: torch.Size, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        assert values[name].shape == shape and columns is None, "a vocabulary is divided by rows"
        return values[name].flatten()[start:stop]

    close_engine(model)
    for module in holder.values():
        resize_vocabulary(module, total, topology)
    if len(holder) == 2:
        model.tie_weights()
    model.config.vocab_size = total
    materialise(model, model.collie_config, topology, dtype, fill)


def _size(now: int, new_num_tokens: int | None, multiple: int | None) -> int:
    for name, value in (("new_num_tokens", new_num_tokens), ("pad_to_multiple_of", multiple)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name}={value!r} is no number of tokens. Give an integer above 0.")
    total = now if new_num_tokens is None else new_num_tokens
    return total if multiple is None else -(-total // multiple) * multiple


def _vocabularies(model: "CollieModelForCausalLM") -> dict[str, nn.Module]:
    """Return the embedding and the head, by name, where this pipeline stage has them."""
    found = {"embed": getattr(model, "embed", None), "head": getattr(model, "head", None)}
    return {name: module for name, module in found.items() if isinstance(module, nn.Embedding | LMHead)}


def _refuse_trained(model: nn.Module, holder: nn.Module, topology: Topology) -> None:
    """Refuse on every rank where one has parameters in training: a stage between the ends has none to look at."""
    if any(together(topology, "The optimizer could not be looked for", lambda: _is_trained(model, holder))):
        raise RuntimeError(
            "resize_token_embeddings makes new parameters, and an optimizer holds the model's present ones. "
            "Resize before the optimizer and the Trainer are made."
        )


def _is_trained(model: nn.Module, holder: nn.Module) -> bool:
    engine = current_engine(model)
    if engine is not None and engine.trains:
        return True
    # an optimizer that owns the backward pass has hooks; a plain one of torch leaves no trace before its first gradient
    hooked = (getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in holder.parameters())
    return any(hooked) or any(parameter.grad is not None for parameter in holder.parameters())


def _new_values(
    holder: nn.Module, total: int, config: CollieConfig, topology: Topology, mean_resizing: bool
) -> dict[str, Tensor]:
    """Return each parameter's new values, whole and on the CPU, on every rank of the stage. Collective in the stage."""
    tied = getattr(config.model_config, "tie_word_embeddings", False)
    values: dict[str, Tensor] = {}
    for name, old in full_parameters(holder, topology, copies=True):
        original = "embed.weight" if tied and name == "head.weight" else name  # which it is called elsewhere
        make = partial(_resized, original, old, total, config, mean_resizing)
        new = together_in_stage(topology, f"{name} could not be given {total} rows", make)
        values[name] = values[original] = share_over_stage(new, topology)
    return values


def _resized(name: str, old_VE: Tensor | None, total: int, config: CollieConfig, mean_resizing: bool) -> Tensor | None:
    """Return the new values where the old ones are: on the leader."""
    if old_VE is None:
        return None
    new = old_VE.new_empty((total, *old_VE.shape[1:]))
    kept = min(total, len(old_VE))
    new[:kept] = old_VE[:kept]
    if total > kept and mean_resizing:
        _fill_near_the_mean(new[kept:], old_VE, generator_for(config.seed, f"{name} resized to {total}"))
    elif total > kept:
        width = math.prod(new.shape[1:])
        drawn = initialiser(config, new.dtype)(name, new.shape, kept * width, total * width)
        new[kept:] = drawn.view_as(new[kept:])
    return new


def _fill_near_the_mean(added_AE: Tensor, old_VE: Tensor, generator: torch.Generator) -> None:
    """Draw rows from N(mean, 1e-9 · covariance) of the old rows (Hewitt 2021, "Initializing new word embeddings").

    A sum of centred rows with weights from N(0, 1/V) has their covariance; no E × E matrix is made or factored.
    """
    rows = old_VE.view(len(old_VE), -1)
    mean_E, wide_VE = rows.mean(0, dtype=torch.float64).float(), rows.float()
    scale = math.sqrt(_SPREAD / len(rows))
    for part in added_AE.view(len(added_AE), -1).split(max(1, _DRAWN // len(rows))):
        weights_DV = torch.randn(len(part), len(rows), generator=generator) * scale
        part.copy_(mean_E + weights_DV @ wide_VE - weights_DV.sum(1, keepdim=True) * mean_E)
