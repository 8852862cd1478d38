"""Random numbers of tensor-parallel ranks: equal where activations are replicated, different where they are split.

The ranks of one replica start with equal generators (`set_seed`) and draw alike, so that dropout of what they all hold
drops the same elements. Dropout of what each holds a part of (the attention weights of its heads) runs inside
`apart`. No state is kept: a recomputed layer, or a second forward, that starts from the same generator draws the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from collie.parallel._topology import Topology

_SEEDS = 2**62


@contextmanager
def apart(topology: Topology) -> Iterator[None]:
    """Let torch draw other numbers on each tensor-parallel rank; afterwards all go on from the same state.

    What is drawn inside depends on the generator before it, which moves on by one number.
    """
    seed = int(torch.randint(_SEEDS, ())) + topology.tp_rank
    cuda = topology.device.type == "cuda"
    with torch.random.fork_rng(devices=[topology.device] if cuda else []):
        if cuda:
            torch.cuda.manual_seed(seed)
        torch.default_generator.manual_seed(seed)
        yield


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
