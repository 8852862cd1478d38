"""What is asked of a run from outside, and how all ranks come to act on it after the same step."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from collie.parallel import Topology


@dataclass(frozen=True)
class Requests:
    """What was asked of the run since the last step, the same on every rank."""

    stop: bool = False
    evaluate: bool = False


def agree(topology: Topology, weight: int, rows: int, local: Requests) -> tuple[int, int, Requests]:
    """Sum a step's weight and rows over the dp ranks, and let every rank know what any of them was asked.

    One all-reduce on the CPU, so that a GPU is not waited for. Ranks of one replica read the same rows: they are
    counted once.
    """
    if topology.world_size == 1:
        return weight, rows, local
    said = torch.tensor([weight, rows, local.stop, local.evaluate], dtype=torch.int64)
    dist.all_reduce(said)
    copies = topology.tp_size * topology.pp_size
    all_weight, all_rows, stop, evaluate = said.tolist()
    return all_weight // copies, all_rows // copies, Requests(stop=bool(stop), evaluate=bool(evaluate))
