"""Work that some ranks do for all of them: every rank learns how it ended, or gets what came of it."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from collie.interfaces import CheckpointError
from collie.parallel._topology import Topology

Result = TypeVar("Result")
_SENT = 2**24  # elements that a collective carries


def together(topology: Topology, failing: str, work: Callable[[], Result]) -> list[Result]:
    """Do `work` on this rank and return what it gave on each, in rank order. Collective: every rank calls it.

    Args:
        topology: the ranks; each waits for the others' work.
        failing: what did not come about where work fails, as the beginning of a sentence.
        work: gives something small that can be pickled. Collectives in it must be done by all ranks, whatever fails.

    Raises:
        CheckpointError: work failed on a rank; on every rank, with the same words (those of the first in rank order).
    """
    error: Exception | None = None
    try:
        outcome: tuple[Result | None, str | None] = (work(), None)
    except Exception as caught:  # whatever it is, the other ranks must hear of it
        error, outcome = caught, (None, _sentence(caught, failing))
    outcomes = [outcome]
    if topology.world_size > 1:
        outcomes = [outcome] * topology.world_size
        dist.all_gather_object(outcomes, outcome)
    reason = next((reason for _, reason in outcomes if reason is not None), None)
    if reason is not None:
        raise CheckpointError(reason) from error
    return [result for result, _ in outcomes]  # type: ignore[misc]  # there is one where there is no reason


def _sentence(error: Exception, failing: str) -> str:
    if isinstance(error, CheckpointError):  # has its own
        return str(error)
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return f"{failing}: {kind}{error}."


def share_over_stage(whole: Tensor | None, topology: Topology) -> Tensor:
    """Return what the leader of this rank's stage has, on the CPU of each of the stage's ranks. Collective.

    whole: on the CPU; None on all but the leader. It goes to the leaders of the other replicas, and from each to the
    tensor-parallel ranks of its own.
    """
    for group, takes_part in ((topology.dp_group, topology.tp_rank == 0), (topology.tp_group, True)):
        if group is not None and takes_part:
            whole = _broadcast(whole, group, topology.device)
    assert whole is not None, "the leader has it"
    return whole


def _broadcast(whole: Tensor | None, group: dist.ProcessGroup, device: torch.device) -> Tensor:
    described = [None if whole is None else (whole.shape, whole.dtype)]
    dist.broadcast_object_list(described, group=group, group_src=0, device=device)
    assert described[0] is not None
    shape, dtype = described[0]
    result = torch.empty(shape, dtype=dtype) if whole is None else whole.contiguous()
    for part in result.view(-1).split(_SENT):
        sent = part.to(device)
        dist.broadcast(sent, group=group, group_src=0)
        part.copy_(sent)
    return result
