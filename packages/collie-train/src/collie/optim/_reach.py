"""Which parameters a backward pass will reach, agreed among the dp ranks before it begins.

Hooks exchange gradients while backward runs, in the order in which they come. A parameter that one rank's loss does not
depend on has no gradient there to come: without knowing it the others would wait, or exchange it for another one.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from collie.parallel import Topology


def reached_unevenly(loss: Tensor, parameters: Sequence[nn.Parameter], topology: Topology) -> set[nn.Parameter]:
    """Return the parameters that the losses of some dp ranks depend on, and of others do not.

    Costs a walk over the graph (about a microsecond a node) and one exchange, on the CPU, of a number a parameter.
    Collective over the dp ranks.
    """
    if topology.dp_group is None:
        return set()
    nodes = _nodes(loss)
    mine = [p.requires_grad and get_gradient_edge(p).node in nodes for p in parameters]
    counts = count_over_dp(mine, topology)
    return {p for p, count in zip(parameters, counts, strict=True) if 0 < count < topology.dp_size}


def count_over_dp(mine: Sequence[bool], topology: Topology) -> list[int]:
    """Count for each place on how many dp ranks it is true. Collective over the dp ranks."""
    counts = torch.tensor(mine, dtype=torch.int32)
    if topology.dp_group is not None:
        dist.all_reduce(counts, group=topology.dp_group)
    return [int(count) for count in counts.tolist()]


def _nodes(loss: Tensor) -> set[Node]:
    """All nodes of a loss's graph."""
    seen: set[Node] = set()
    waiting = [loss.grad_fn] if loss.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions if following is not None)
    return seen
