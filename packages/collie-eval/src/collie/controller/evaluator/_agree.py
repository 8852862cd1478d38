"""What may fail on one rank's rows alone, done so that no other rank waits for it."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from collie.interfaces import DataError
from collie.parallel import Topology

Result = TypeVar("Result")


def agreed(topology: Topology, work: Callable[[], Result]) -> Result:
    """Do `work`, which reads this rank's rows, and return what it gave. Collective over the data-parallel ranks.

    The ranks of a replica have the same rows, and the same end.

    Raises:
        DataError: work raised one on some rank; on every rank, with the words of the first.
    """
    reason: str | None = None
    try:
        result = work()
    except DataError as error:
        if topology.dp_group is None:
            raise
        reason = str(error)
    if topology.dp_group is None:
        return result
    failed = torch.tensor(int(reason is not None), device=topology.device)
    dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=topology.dp_group)
    if failed:
        reasons: list[str | None] = [None] * topology.dp_size
        dist.all_gather_object(reasons, reason, group=topology.dp_group)
        rank, first = next((rank, each) for rank, each in enumerate(reasons) if each is not None)
        raise DataError(f"Data-parallel rank {rank}: {first}")
    return result
