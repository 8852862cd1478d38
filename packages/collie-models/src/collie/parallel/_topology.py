"""The arrangement of ranks: a mesh of pipeline × data × tensor coordinates, tensor innermost."""

import atexit
import gc
import itertools
import os
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from collie.config import CollieConfig

_TIMEOUT = timedelta(minutes=30)  # torch's default; a slow load on one rank must not end the others


@dataclass(frozen=True)
class Topology:
    """Where this rank stands: its coordinates, its device and the groups it speaks to.

    Ranks are numbered along the mesh (pp, dp, tp) with tp innermost, so that the ranks that exchange most stand next
    to each other. A group is None where its size is 1: nothing is to be exchanged.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    pp_size: int = 1
    dp_size: int = 1
    tp_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    pp_group: dist.ProcessGroup | None = None
    dp_group: dist.ProcessGroup | None = None
    tp_group: dist.ProcessGroup | None = None
    model_group: dist.ProcessGroup | None = None  # all that hold parts of one replica: pp × tp
    ends_group: dist.ProcessGroup | None = None  # the first and the last stage; of no use to those between
    mesh: DeviceMesh | None = field(default=None, repr=False, compare=False)
    _subgroups: dict[int, dist.ProcessGroup] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def dp_rank(self) -> int:
        return self.rank // self.tp_size % self.dp_size

    @property
    def pp_rank(self) -> int:
        return self.rank // (self.tp_size * self.dp_size)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(pp, dp, tp)."""
        return self.pp_size, self.dp_size, self.tp_size

    @property
    def model_rank(self) -> int:
        """This rank's place in `model_group`: 0 for one rank of each replica."""
        return self.pp_rank * self.tp_size + self.tp_rank

    def group(self, name: str) -> dist.ProcessGroup:
        """Return the group of a dimension ("pp", "dp" or "tp"), also where it is of this rank alone: for DeepSpeed.

        Raises:
            RuntimeError: this is a world of one, whose only group is the default one.
        """
        if self.mesh is None:
            raise RuntimeError("a world of one has no groups by dimension")
        return self.mesh.get_group(name)

    def tp_subgroup(self, size: int) -> dist.ProcessGroup | None:
        """Return this rank's group of `size` neighbouring tensor-parallel ranks; None for a size of 1.

        Collective when it is asked for the first time: every rank asks for the same sizes in the same order.
        """
        if size in (1, self.tp_size) or self.tp_group is None:
            return self.tp_group if size > 1 else None
        if size not in self._subgroups:
            ranks = [list(range(first, first + size)) for first in range(0, self.world_size, size)]
            self._subgroups[size], _ = dist.new_subgroups_by_enumeration(ranks)
        return self._subgroups[size]

    def barrier(self) -> None:
        """Wait for every rank of the world."""
        if self.world_size > 1:
            dist.barrier(device_ids=[self.local_rank] if self.device.type == "cuda" else None)


_active: Topology | None = None


def active_topology() -> Topology:
    """The topology that `setup_distribution` made last; a world of one before that."""
    return _active if _active is not None else Topology(device=_device(_local_rank()))


def setup_distribution(config: CollieConfig) -> Topology:
    """Join the ranks of this run and arrange them as `config` says.

    Reads torchrun's environment; without it this process is a world of one. Calling it again with equal sizes gives
    the same topology; with other sizes the groups are made anew over the same ranks.

    Raises:
        ParallelSizeError: dp_size, tp_size and pp_size do not fit the number of ranks.
    """
    global _active
    world_size = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    config.validate(world_size)
    wanted = (config.pp_size, config.dp_size, config.tp_size)
    if _active is not None and _active.sizes == wanted and dist.is_initialized():
        return _active
    device = _set_device()
    if not dist.is_initialized():
        _join(device)
    _active = _arrange(wanted, device)
    return _active


def store_of_ranks() -> dist.Store | None:
    """Return where the ranks of this run leave each other notes, also before there are groups; None for a world of one.

    Ranks that a launcher started are joined by it, if they were not. Nothing of the config is needed for that.
    """
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return None
        _join(_set_device())
    if dist.get_world_size() == 1:
        return None
    store: dist.Store = dist.distributed_c10d._get_default_store()
    return store


def _set_device() -> torch.device:
    device = _device(_local_rank())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _device(local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _join(device: torch.device) -> None:
    """Start the default process group; a process that no launcher started becomes a world of one on a free port."""
    atexit.register(_leave)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=_TIMEOUT)
        return
    store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True)  # 0: a free one
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=_TIMEOUT)


def _leave() -> None:
    """End the groups before the interpreter ends.

    A thread of gloo that lets go of a tensor while Python is being taken down aborts the process: of 2-rank runs that
    ended on a collective 10 of 60 did without this, and 0 of 60 with it (torch 2.13). After an error nothing is ended:
    another rank may wait inside a collective, and the launcher ends us all.
    """
    global _active
    if hasattr(sys, "last_value") or not dist.is_initialized():
        return
    _active = None
    gc.collect()
    dist.destroy_process_group()
    gc.collect()
    time.sleep(0.1)  # for those threads: nothing tells when they are done


def _arrange(sizes: tuple[int, int, int], device: torch.device) -> Topology:
    """Make the groups of a mesh; every rank makes the same calls in the same order."""
    groups: dict[str, dist.ProcessGroup] = {}
    mesh: DeviceMesh | None = None
    names = ("pp", "dp", "tp")
    if dist.get_world_size() > 1:
        mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
        groups = {name: mesh.get_group(name) for name, size in zip(names, sizes, strict=True) if size > 1}
    pp, dp, tp = sizes
    return Topology(
        rank=dist.get_rank(),
        local_rank=_local_rank(),
        world_size=dist.get_world_size(),
        pp_size=pp,
        dp_size=dp,
        tp_size=tp,
        device=device,
        pp_group=groups.get("pp"),
        dp_group=groups.get("dp"),
        tp_group=groups.get("tp"),
        model_group=_model_group(sizes, groups),
        ends_group=_ends_group(sizes, groups),
        mesh=mesh,
    )


def _model_group(sizes: tuple[int, int, int], groups: dict[str, dist.ProcessGroup]) -> dist.ProcessGroup | None:
    """Return the group of this rank's replica; made anew where both pp and tp divide it."""
    pp, dp, tp = sizes
    if pp == 1 or tp == 1:
        return groups.get("pp") or groups.get("tp")
    places = list(itertools.product(range(pp), range(tp)))
    replicas = [[_number(sizes, stage, replica, part) for stage, part in places] for replica in range(dp)]
    group: dist.ProcessGroup = dist.new_subgroups_by_enumeration(replicas)[0]
    return group


def _ends_group(sizes: tuple[int, int, int], groups: dict[str, dist.ProcessGroup]) -> dist.ProcessGroup | None:
    """Return the group of the first and the last stage's ranks with this rank's other coordinates."""
    pp, dp, tp = sizes
    if pp <= 2:
        return groups.get("pp")
    columns = list(itertools.product(range(dp), range(tp)))
    ends = [[_number(sizes, stage, *column) for stage in (0, pp - 1)] for column in columns]
    between = [[_number(sizes, stage, *column)] for stage in range(1, pp - 1) for column in columns]
    group: dist.ProcessGroup = dist.new_subgroups_by_enumeration(ends + between)[0]
    return group


def _number(sizes: tuple[int, int, int], stage: int, replica: int, part: int) -> int:
    """The rank at these coordinates."""
    _, dp, tp = sizes
    return (stage * dp + replica) * tp + part
