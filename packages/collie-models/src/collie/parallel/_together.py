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


def together_in_stage(topology: Topology, failing: str, work: Callable[[], Result]) -> Result:
    """Do `work` on this rank, and go on where each rank of this pipeline stage did its own. Collective in the stage.

    For what comes before an exchange among the stage's ranks and can fail on one of them, such as finding room: the
    others would wait for it. Unlike `together` it may be called another number of times on each stage.

    Raises:
        CheckpointError: work failed on a rank of the stage; on each of them, with the same words.
    """
    error: Exception | None = None
    reason: str | None = None
    try:
        result = work()
    except Exception as caught:  # whatever it is, the other ranks must hear of it
        error, reason = caught, _sentence(caught, failing)
    for group in (topology.dp_group, topology.tp_group):  # one after the other, it reaches the whole stage
        if group is not None:
            reason = _first(reason, group)
    if reason is not None:
        raise CheckpointError(reason) from error
    return result


def _first(reason: str | None, group: dist.ProcessGroup) -> str | None:
    reasons = [reason] * dist.get_world_size(group)
    dist.all_gather_object(reasons, reason, group=group)
    return next((reason for reason in reasons if reason is not None), None)


def _sentence(error: Exception, failing: str) -> str:
    if isinstance(error, CheckpointError):  # has its own
        return str(error)
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return f"{failing}: {kind}{error}."


def share_over_stage(whole: Tensor | None, topology: Topology) -> Tensor:
    """Return what the leader of this rank's stage has, on the CPU of each rank of the stage. Collective in the stage.

    whole: on the CPU; None on all but the leader. It goes to the leaders of the other replicas, and from each to the
    tensor-parallel ranks of its own.

    Raises:
        CheckpointError: a rank has no room for it; on every rank of the stage.
    """
    ways = ((topology.dp_group, topology.tp_rank == 0), (topology.tp_group, True))
    groups = [group for group, takes_part in ways if group is not None and takes_part]
    described = [None if whole is None else (whole.shape, whole.dtype)]
    for group in groups:
        dist.broadcast_object_list(described, group=group, group_src=0, device=topology.device)
    assert described[0] is not None, "the leader has it"
    shape, dtype = described[0]

    def make_room() -> Tensor:
        return torch.empty(shape, dtype=dtype) if whole is None else whole.contiguous()

    result = together_in_stage(topology, f"There is no room for a tensor of shape {tuple(shape)}", make_room)
    for group in groups:
        for part in result.view(-1).split(_SENT):
            sent = part.to(topology.device)
            dist.broadcast(sent, group=group, group_src=0)
            part.copy_(sent)
    return result
