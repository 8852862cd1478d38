"""Random numbers of a replica's ranks: equal where they hold the same, different where each holds a part.

They start with equal generators (`set_seed`) and draw alike, so that dropout of what they all hold drops the same
elements. Dropout of what each holds a part of (the attention weights of its heads, a pipeline stage) runs inside
`apart`. No state is kept: a recomputed layer, or a second forward, that starts from the same generator draws the same.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor

from collie.parallel._topology import Topology

_SEEDS = 2**62


@contextmanager
def apart(topology: Topology, number: int | None = None) -> Iterator[None]:
    """Let torch draw other numbers on each tensor-parallel rank; afterwards all go on from the same state.

    What is drawn inside depends on the generator before it, which moves on by one number, and on `number`: of the
    tensor-parallel rank, or where given of what else draws apart (a pipeline stage).
    """
    seed = int(torch.randint(_SEEDS, ())) + (topology.tp_rank if number is None else number)
    cuda = topology.device.type == "cuda"
    with torch.random.fork_rng(devices=[topology.device] if cuda else []):
        if cuda:
            torch.cuda.manual_seed(seed)
        torch.default_generator.manual_seed(seed)
        yield


def draws_of_stage(topology: Topology, stage: int, dropout: float) -> AbstractContextManager[None]:
    """Return the context of a pipeline stage's forward with this dropout: other elements are dropped in each stage.

    Around it the stages draw alike, so that what a user draws for a batch is the same on all of them.
    """
    return apart(topology, stage) if dropout > 0 else nullcontext()


def draw_alike(topology: Topology) -> None:
    """Give torch's generators the state that they have on the replica's first rank. Collective."""
    if topology.model_group is None:
        return
    states: list[Tensor | None] = [torch.get_rng_state(), None]
    if topology.device.type == "cuda":
        states[1] = torch.cuda.get_rng_state(topology.device)
    dist.broadcast_object_list(states, group=topology.model_group, group_src=0, device=topology.device)
    cpu, gpu = states
    assert cpu is not None
    torch.set_rng_state(cpu)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu, topology.device)
