"""Work that some ranks do for all of them: every rank learns how it ended."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from collie.interfaces import CheckpointError
from collie.parallel._topology import Topology

Result = TypeVar("Result")


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
