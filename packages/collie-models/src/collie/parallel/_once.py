"""Work that one rank of a node does, while the node's others wait for what came of it."""

import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from collie.interfaces import CheckpointError
from collie.parallel._topology import store_of_ranks

_SIGN_OF_LIFE_S = 10.0
_PATIENCE = timedelta(seconds=60)  # how long a rank waits without a sign of life of the one that works
_calls: Counter[str] = Counter()


def once_per_node(what: str, work: Callable[[], str]) -> str:
    """Return what `work` gives on the first rank of this node that comes here; the others wait, and do not do it.

    It may be called before there are groups: the ranks are joined here, which all must come to. From then on a rank
    that nobody else waits for works alone, so ranks that come here in another order, or not at all, do no harm.

    Args:
        what: names the work, alike on all ranks; calls with equal names are counted.
        work: gives text, such as a path.

    Raises:
        CheckpointError: the work failed, with the same words on all ranks of the node; or the rank that does it ended.
    """
    store = store_of_ranks()
    if store is None:
        return work()
    _calls[what] += 1
    node = f"{socket.gethostname()}/{os.environ.get('GROUP_RANK', '')}"  # torchrun's number of the node
    key = f"collie/once/{node}/{what}/{_calls[what]}"
    if store.add(f"{key}/ranks", 1) == 1:
        return _work(store, key, work)
    result, error = _wait(store, key, what)
    if error is not None:
        raise CheckpointError(error)
    return result


def _work(store: dist.Store, key: str, work: Callable[[], str]) -> str:
    outcome: tuple[str, str | None] = "", "it was interrupted"
    try:
        with _signs_of_life(store, f"{key}/alive"):
            outcome = work(), None
    except BaseException as error:
        outcome = "", str(error) or type(error).__name__
        raise
    finally:
        store.set(f"{key}/done", json.dumps(outcome))
    return outcome[0]


@contextmanager
def _signs_of_life(store: dist.Store, key: str) -> Iterator[None]:
    ended = threading.Event()

    def count() -> None:
        store.add(key, 1)
        while not ended.wait(_SIGN_OF_LIFE_S):
            store.add(key, 1)

    thread = threading.Thread(target=count, name="collie-once", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wait(store: dist.Store, key: str, what: str) -> tuple[str, str | None]:
    seen = -1
    while True:
        try:
            store.wait([f"{key}/done"], _PATIENCE)
            break
        except dist.DistStoreError:  # not in that time
            signs = store.add(f"{key}/alive", 0)
            if signs == seen:
                raise CheckpointError(
                    f"{what}: the rank of this node that does it has given no sign of life for "
                    f"{_PATIENCE.total_seconds():.0f} s. See the end of its log."
                ) from None
            seen = signs
    result, error = json.loads(store.get(f"{key}/done"))
    return result, error
