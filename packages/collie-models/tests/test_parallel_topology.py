"""Where ranks stand, and that they agree about it."""

import pytest
import torch
import torch.distributed as dist

from collie.config import CollieConfig
from collie.interfaces import ParallelSizeError
from collie.parallel import Topology, active_topology, env, setup_distribution
from collie.testing import RankError, run_ranks


def _config(**fields):
    config = CollieConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def test_tensor_parallel_is_innermost():
    """Rank = (pp · dp_size + dp) · tp_size + tp, for every rank of a 2 × 3 × 2 mesh, and no two ranks share a place."""
    places = []
    for rank in range(12):
        topology = Topology(rank=rank, world_size=12, pp_size=2, dp_size=3, tp_size=2)
        assert (topology.pp_rank * 3 + topology.dp_rank) * 2 + topology.tp_rank == rank
        places.append((topology.pp_rank, topology.dp_rank, topology.tp_rank))
    assert len(set(places)) == 12


def test_a_process_that_nobody_launched_is_a_world_of_one():
    """No MPI discovery, no fixed port: two such processes can run at the same time."""

    def alone():
        import os

        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        topology = setup_distribution(CollieConfig())
        total = torch.ones(1)
        dist.all_reduce(total)
        return topology.world_size, topology.dp_group, total.item()

    assert run_ranks(2, alone) == [(1, None, 1.0), (1, None, 1.0)]


def test_setup_is_idempotent_and_rebuilds_for_other_sizes():
    """Equal sizes give the same object; other sizes give groups that really reach other ranks."""

    def arrange():
        config = _config(dp_size=1)
        first = setup_distribution(config)
        again = setup_distribution(_config(dp_size=4))
        split = setup_distribution(_config(dp_size=2, tp_size=2))
        mine = torch.tensor([float(split.rank)])
        dist.all_reduce(mine, group=split.tp_group)
        other = torch.tensor([float(split.rank)])
        dist.all_reduce(other, group=split.dp_group)
        return config.dp_size, first is again, active_topology() is split, env.tp_rank, mine.item(), other.item()

    results = run_ranks(4, arrange)
    assert results == [
        (4, True, True, 0, 1.0, 2.0),
        (4, True, True, 1, 1.0, 4.0),
        (4, True, True, 0, 5.0, 2.0),
        (4, True, True, 1, 5.0, 4.0),
    ]


def test_sizes_that_do_not_fit_name_the_numbers():
    """Three ranks cannot be two tensor-parallel ones; every rank says so and none hangs."""
    with pytest.raises(RankError) as caught:
        run_ranks(3, lambda: setup_distribution(_config(tp_size=2)), timeout=30)
    assert isinstance(caught.value.exception, ParallelSizeError)
    assert "3" in str(caught.value.exception) and "tp_size" in str(caught.value.exception)
