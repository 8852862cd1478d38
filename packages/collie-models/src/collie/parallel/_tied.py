"""A tied weight that two pipeline stages hold, and which of several equal parameters counts in sums over a replica.

The last stage's head has a copy of the first stage's embedding. Both start equal, their gradients are summed over the
two ranks before each update, and so they stay equal.
"""

from collections.abc import Iterable
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collie.parallel._cut import cut_of
from collie.parallel._topology import Topology


class _TiedCopy(Protocol):
    tied_copy: str


class _Counted(Protocol):
    tensor_model_parallel: bool  # DeepSpeed's mark: this rank counts the parameter in norms


def mark_copy(parameter: nn.Parameter, original: str) -> nn.Parameter:
    """Let a parameter say of which other stage's parameter it is a copy; return it."""
    cast(_TiedCopy, parameter).tied_copy = original
    return parameter


def original_of(parameter: nn.Parameter) -> str | None:
    """Return what `mark_copy` said, or None where the parameter is the original."""
    return getattr(parameter, "tied_copy", None)


def counts_here(parameter: nn.Parameter, topology: Topology) -> bool:
    """Whether this rank is the one of those that hold the same values which counts them in sums over the replica."""
    if original_of(parameter) is not None:
        return False
    cut = cut_of(parameter)
    return topology.tp_rank == 0 if cut is None else cut.counts_on(topology.tp_rank)


def mark_counted(parameter: nn.Parameter, topology: Topology) -> None:
    """Let DeepSpeed know whether this rank counts the parameter."""
    cast(_Counted, parameter).tensor_model_parallel = counts_here(parameter, topology)


class HasEnds(Protocol):
    """A model of which the first and the last pipeline stage may hold one weight each that are tied."""

    def weights_of_both_ends(self) -> list[nn.Parameter]:
        """Return the tied weight where this stage holds it and trains it."""
        ...


def sum_grads_of_ends(model: nn.Module, topology: Topology) -> None:
    """Give both copies of a tied weight the gradient of the whole: what each stage's own adds up to."""
    if topology.pp_size == 1 or not hasattr(model, "weights_of_both_ends"):
        return
    for weight in cast(HasEnds, model).weights_of_both_ends():
        weight.grad = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        sum_over_ends([weight.grad], topology)


def sum_over_ends(grads: Iterable[Tensor], topology: Topology) -> None:
    """Sum gradients of tied weights over the first and the last stage, in place. Both of these call it, no other."""
    for grad in grads:
        dist.all_reduce(grad, group=topology.ends_group)
