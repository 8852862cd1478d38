"""Gathering whole parameters: a rank that has no room for its part in it ends the walk for all, and none waits."""

import pytest
import torch
from tensor_ranks import make
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from collie.config import CollieConfig
from collie.interfaces import CheckpointError
from collie.parallel import _gather, active_topology, full_parameters, materialise, setup_distribution

pytest.importorskip("deepspeed")


def walk(tp, stage, failing):
    """What each rank hears where one has no room for the third parameter; and what comes when it has room again."""
    model, _ = make("tied", tp, stage)
    make_room, calls, names = _gather._make_room, [], []

    def no_room(parameters, topology):
        calls.append(1)
        if topology.rank == failing and len(calls) == 3:
            raise MemoryError("41 GB")
        return make_room(parameters, topology)

    _gather._make_room = no_room
    with pytest.raises(CheckpointError) as caught:
        for name, _ in full_parameters(model, active_topology()):
            names.append(name)
    assert type(caught.value.__cause__) is (MemoryError if active_topology().rank == failing else type(None))
    again = [name for name, _ in full_parameters(model, active_topology())]
    return str(caught.value), names, again


@pytest.mark.parametrize(
    ("count", "tp", "stage", "failing"), [(2, 2, 0, 0), (2, 2, 0, 1), (2, 1, 3, 0), (4, 2, 3, 1), (4, 2, 3, 2)]
)
def test_a_rank_without_room_is_heard_of_by_all_before_they_exchange(ranks, count, tp, stage, failing):
    heard, names, again = zip(*ranks(count, walk, tp, stage, failing, timeout=30), strict=True)
    assert set(heard) == {f"{again[0][2]} could not be gathered: MemoryError: 41 GB."}
    assert all(walked == every[:2] and len(every) > 10 for walked, every in zip(names, again, strict=True))


class Allocations(TorchDispatchMode):
    """The bytes of each storage of at least 1 KiB that an operation made."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            given = [x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            storage = out.untyped_storage()
            if storage.nbytes() >= 1024 and storage.data_ptr() not in given:
                self.bytes.append(storage.nbytes())
        return out


def allocations():
    """What gathering a parameter of 16 KiB in slices allocates on its device."""
    config = CollieConfig(ds_config={"zero_optimization": {"stage": 3}})
    topology = setup_distribution(config)
    with torch.device("meta"):
        model = nn.Linear(64, 64, bias=False)
    values = torch.arange(64 * 64.0)
    materialise(model, config, topology, torch.float32, lambda name, shape, start, stop: values[start:stop])
    with Allocations() as made:
        whole = dict(full_parameters(model, topology))["weight"]
    assert whole is None or torch.equal(whole.flatten(), values)
    return made.bytes


def test_slices_are_gathered_into_the_whole_itself(ranks):
    """On a GPU a list of them beside the whole would be a second one."""
    assert ranks(2, allocations) == [[64 * 64 * 4], []]
