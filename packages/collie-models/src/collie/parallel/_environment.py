"""What scripts ask about their surroundings: `env`, and the seed."""

import random

import torch
import torch.distributed as dist

from collie.config import CollieConfig
from collie.parallel._topology import active_topology

_SEEDS_A_STEP = 1_000_003  # more than there are ranks, so that no rank gets another's of another step


class Env:
    """The active topology under the names that existing scripts use (`env.rank`, `env.dp_size`, …)."""

    @property
    def rank(self) -> int:
        return active_topology().rank

    @property
    def local_rank(self) -> int:
        return active_topology().local_rank

    @property
    def world_size(self) -> int:
        return active_topology().world_size

    @property
    def device(self) -> torch.device:
        return active_topology().device

    @property
    def pp_rank(self) -> int:
        return active_topology().pp_rank

    @property
    def dp_rank(self) -> int:
        return active_topology().dp_rank

    @property
    def tp_rank(self) -> int:
        return active_topology().tp_rank

    @property
    def pp_size(self) -> int:
        return active_topology().pp_size

    @property
    def dp_size(self) -> int:
        return active_topology().dp_size

    @property
    def tp_size(self) -> int:
        return active_topology().tp_size

    @property
    def pp_group(self) -> dist.ProcessGroup | None:
        return active_topology().pp_group

    @property
    def dp_group(self) -> dist.ProcessGroup | None:
        return active_topology().dp_group

    @property
    def tp_group(self) -> dist.ProcessGroup | None:
        return active_topology().tp_group

    @property
    def is_pipeline(self) -> bool:
        return active_topology().pp_size > 1

    @property
    def is_first_stage(self) -> bool:
        return active_topology().pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        topology = active_topology()
        return topology.pp_rank == topology.pp_size - 1

    def barrier(self) -> None:
        """Wait for every rank."""
        active_topology().barrier()


env = Env()


def set_seed(config: CollieConfig, after: int = 0) -> None:
    """Seed Python, numpy and torch: alike on the ranks of a replica, and differently in each replica.

    Where a replica's ranks must draw other numbers than each other (dropout of their parts), they do so by `apart`.
    `after`: steps that were made before; what is drawn then is not what was drawn at the beginning.
    """
    seed = config.seed + active_topology().dp_rank + after * _SEEDS_A_STEP
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy
    except ImportError:  # torch works without it
        return
    numpy.random.seed(seed % 2**32)
