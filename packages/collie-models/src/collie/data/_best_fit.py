"""Best fit decreasing: which rows go into which pack (Johnson et al. 1974: at most 11/9 of the fewest packs, and 4)."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

# N rows, P packs


def best_fit(lengths_N: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows go into which pack: (rows_N, ends_P), pack p being rows_N[ends_P[p - 1]:ends_P[p]].

    The longest rows are placed first, each where it leaves least room. So many rows of one length go one after the
    other into the packs with least room that takes them, and are placed at once: a million rows are sorted, and the
    rest follows from how many there are of each length.

    In a pack rows keep their order, and packs are in the order of their first rows.

    Args:
        lengths_N: of the rows, each from 1 to `room`.
        room: of a pack.
    """
    by_length_N = np.argsort(-lengths_N, kind="stable")
    values, counts = np.unique(-lengths_N, return_counts=True)  # the longest first
    bins = _Bins(room)
    pack_N = np.empty(len(lengths_N), dtype=np.int64)
    placed = 0
    for length, count in zip((-values).tolist(), counts.tolist(), strict=True):
        pack_N[by_length_N[placed : placed + count]] = bins.take(length, count)
        placed += count
    return _in_order(pack_N, bins.made)


class _Bins:
    """The packs that have been begun, by the room that they have left."""

    def __init__(self, room: int) -> None:
        self._whole = room
        self._of_room: dict[int, np.ndarray] = {}
        self._rooms: list[int] = []  # keys of these, rising
        self.made = 0

    def take(self, length: int, count: int) -> np.ndarray:
        """Return the packs that `count` rows of one length go into, one after the other."""
        taken: list[np.ndarray] = []
        while count:
            at = bisect_left(self._rooms, length)
            if at < len(self._rooms):
                room = self._rooms.pop(at)
                packs = self._of_room.pop(room)
            else:
                room = self._whole
                needed = -(-count // (room // length))
                packs = np.arange(self.made, self.made + needed)
                self.made += needed
            each = room // length  # a pack that has taken one has the least room for the next
            full, over = divmod(count, each)
            if full >= len(packs):
                full, over = len(packs), 0
            taken.append(np.repeat(packs[:full], each))
            self._keep(room - each * length, packs[:full])
            if over:
                taken.append(np.repeat(packs[full : full + 1], over))
                self._keep(room - over * length, packs[full : full + 1])
            self._keep(room, packs[full + bool(over) :])
            count -= each * full + over
        return np.concatenate(taken)

    def _keep(self, room: int, packs: np.ndarray) -> None:
        if not len(packs) or not room:
            return
        if room in self._of_room:
            packs = np.concatenate((self._of_room[room], packs))
        else:
            insort(self._rooms, room)
        self._of_room[room] = packs


def _in_order(pack_N: np.ndarray, packs: int) -> tuple[np.ndarray, np.ndarray]:
    first_P = np.full(packs, len(pack_N))
    np.minimum.at(first_P, pack_N, np.arange(len(pack_N)))
    number_P = np.empty(packs, dtype=np.int64)
    number_P[np.argsort(first_P)] = np.arange(packs)
    pack_N = number_P[pack_N]
    return np.argsort(pack_N, kind="stable"), np.cumsum(np.bincount(pack_N, minlength=packs))
