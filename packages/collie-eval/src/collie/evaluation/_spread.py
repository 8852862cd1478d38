"""Work on many items of different lengths, spread over the data-parallel replicas."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist
from tqdm import tqdm

from collie.parallel import Topology

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_replicas(
    items: Sequence[Item],
    length: Callable[[Item], int],
    batch_size: int,
    topology: Topology,
    run: Callable[[list[Item]], list[Result]],
    title: str,
) -> list[Result]:
    """Run all items in batches of like length, the longest first; their results in their order, on every rank.

    Collective: every rank has the same items. Each data-parallel rank runs its block of every global batch of
    batch_size × dp_size items and makes as many calls as the others: where it has no item left, it runs the longest
    one again, which counts for nothing. The ranks of a replica run the same batches.

    Args:
        run: a batch → one picklable result an item.
        title: what the progress bar of rank 0 says.
    """
    order = sorted(range(len(items)), key=lambda at: -length(items[at]))
    found: list[tuple[int, Result]] = []
    stride = batch_size * topology.dp_size
    for start in tqdm(range(0, len(order), stride), desc=title, disable=topology.rank != 0):
        first = start + topology.dp_rank * batch_size
        mine = order[first : min(first + batch_size, start + stride)]
        results = run([items[at] for at in mine or order[:1]])
        found += zip(mine, results, strict=False)  # of a filler nothing is kept
    everyone: list[list[tuple[int, Result]]] = [found]
    if topology.dp_group is not None:
        everyone = [[]] * topology.dp_size
        dist.all_gather_object(everyone, found, group=topology.dp_group)
    by_item = dict(pair for part in everyone for pair in part)
    return [by_item[at] for at in range(len(items))]
