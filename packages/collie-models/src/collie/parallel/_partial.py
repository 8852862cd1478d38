"""Parameters that every tensor-parallel rank holds whole, while it applies them to a part of the activations.

Such are norms of single heads, and under sequence parallelism all that acts on the split stream: norms, and biases
after row-parallel products. Each rank computes a part of their gradient. A hook of the parameter sums the parts when
torch has a backward pass's gradient, and before anybody sees it: DeepSpeed, LOMO, or `grad`.
"""

from functools import partial

from torch import nn

from collie.parallel._collectives import total
from collie.parallel._topology import Topology


def mark_partial(parameter: nn.Parameter) -> None:
    """Let a parameter on `meta` say that each rank will have a part of its gradient."""
    parameter.tp_partial = True  # type: ignore[attr-defined]


def is_partial(parameter: nn.Parameter) -> bool:
    """Return what `mark_partial` said."""
    return getattr(parameter, "tp_partial", False)


def sum_gradient(parameter: nn.Parameter, topology: Topology) -> None:
    """Sum a parameter's gradient over the tensor-parallel ranks, in every backward pass that reaches it."""
    trains = parameter.requires_grad
    parameter.requires_grad_()  # torch takes no hook without, and one that is frozen now may be trained later
    parameter.register_hook(partial(total, group=topology.tp_group))
    parameter.requires_grad_(trains)
