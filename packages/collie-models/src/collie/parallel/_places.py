"""Pipeline ranks on which an optimizer, or one of its groups, has nothing to train: something holds the place.

Which weights are frozen may leave a stage without any that is trained. Its ranks take part in DeepSpeed's exchanges all
the same (the norm, the averages over dp), and DeepSpeed fails on a group without a parameter that requires a gradient.
"""

from typing import Any

import torch
from torch import nn


class Places(nn.Module):
    """A model, and parameters of one element that are zero for ever: what DeepSpeed gets in place of the model.

    Args:
        model: called as it is.
        count: how many places are to be held.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        like = next(model.parameters())
        self.model = model
        self.places = nn.ParameterList(torch.zeros(1, dtype=like.dtype, device=like.device) for _ in range(count))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def backward(self) -> None:
        """Give the places the gradient that leaves them zero, past the hooks in which DeepSpeed prepares its step."""
        (torch.cat(list(self.places)).sum() * 0).backward()


def hold_places(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Places | None:
    """Put a place into each group of an optimizer that trains nothing on this rank; None where every group does.

    Without an optimizer, where DeepSpeed makes one of all parameters, the place is there for it to find. Groups stay
    as many as on the other ranks, which schedulers count on.
    """
    if optimizer is None:
        return None if any(p.requires_grad for p in model.parameters()) else Places(model, 1)
    idle = [group for group in optimizer.param_groups if not any(p.requires_grad for p in group["params"])]
    if not idle:
        return None
    places = Places(model, len(idle))
    for group, place in zip(idle, places.places, strict=True):
        group["params"].append(place)
    return places


def release_places(places: Places, optimizer: torch.optim.Optimizer) -> None:
    """Take the places out of the optimizer's groups again, where DeepSpeed has left them there."""
    held = set(places.places)
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter not in held]
    for place in held:
        optimizer.state.pop(place, None)
