"""What is asked of a run from outside, and how all ranks come to act on it after the same step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist

from collie.parallel import Topology


@dataclass(frozen=True)
class Requests:
    """What was asked of the run since the last step, the same on every rank."""

    stop: bool = False
    checkpoint: bool = False
    evaluate: bool = False
    prompt: bool = False  # a server's provider has one
    failed: bool = False  # a rank could not read its rows: none makes this step

    def __or__(self, other: "Requests") -> "Requests":
        return Requests(*(mine or theirs for mine, theirs in zip(self, other, strict=True)))

    def __iter__(self) -> Iterator[bool]:
        return (getattr(self, kind) for kind in _FIELDS)


_FIELDS = tuple(field.name for field in fields(Requests))
ANSWERED = ("stop", "checkpoint", "evaluate")
"""The kinds of request in a run's control folder that a Trainer answers."""
PROMPTS = ("prompt", "cancel")
"""Those that its server answers, if it does."""


def agree(topology: Topology, weight: int, rows: int, local: Requests) -> tuple[int, int, Requests]:
    """Sum a step's weight and rows over the dp ranks, and let every rank know what any of them was asked.

    One all-reduce on the CPU, so that a GPU is not waited for. Ranks of one replica read the same rows: they are
    counted once.
    """
    if topology.world_size == 1:
        return weight, rows, local
    said = torch.tensor([weight, rows, *local], dtype=torch.int64)
    dist.all_reduce(said)
    copies = topology.tp_size * topology.pp_size
    all_weight, all_rows, *asked = said.tolist()
    return all_weight // copies, all_rows // copies, Requests(*map(bool, asked))


@contextmanager
def failing_together(topology: Topology) -> Iterator[None]:
    """What fails within it, before a step's `agree`, fails there on the other ranks: they would wait for this one."""
    try:
        yield
    except Exception:
        agree(topology, 0, 0, Requests(failed=True))
        raise
