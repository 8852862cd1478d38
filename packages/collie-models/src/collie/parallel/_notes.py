"""Short notes from rank to rank, left in the store that joined them: for threads, which must not use collectives."""

import time
from collections.abc import Sequence

from collie.parallel._topology import store_of_ranks

_POLL_SECONDS = 0.02


def leave_note(key: str, text: str) -> None:
    """Leave a note for another rank. A key is used once in a run."""
    store = store_of_ranks()
    if store is not None:
        store.set(key, text)


def await_notes(keys: Sequence[str], timeout: float) -> list[str]:
    """Wait until the notes of all these keys have been left; return them, and clear them away.

    Raises:
        TimeoutError: some of them were not left within `timeout` seconds.
    """
    store = store_of_ranks()
    if store is None or not keys:
        return []
    deadline = time.monotonic() + timeout
    while not store.check(list(keys)):  # a blocking wait would hold the store against this rank's other threads
        if time.monotonic() > deadline:
            raise TimeoutError(f"a note of another rank did not come within {timeout:g} s")
        time.sleep(_POLL_SECONDS)
    notes = [store.get(key).decode() for key in keys]
    for key in keys:
        store.delete_key(key)
    return notes
