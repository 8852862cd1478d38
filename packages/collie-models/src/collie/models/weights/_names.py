"""How a family's checkpoints call their tensors, and where they store rows in another order than we do.

A table has one entry a tensor, both ways: `Rename` for the name alone, `Reorder` where our tensor is the
checkpoint's rows rearranged. In a pattern `{i}` is a layer's number and a final `*` a parameter's own name.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

Rows = list[tuple[int, int]]  # ranges [start, stop) of a tensor's first dimension, in the order they are taken


@dataclass(frozen=True)
class Rename:
    """The tensor of a checkpoint under our name, unchanged."""

    checkpoint: str
    ours: str

    def rows(self, config: Any, total: int) -> Rows:
        """Return the checkpoint's row ranges that make up our tensor of `total` rows."""
        return [(0, total)]

    def to_ours(self, name: str) -> str | None:
        """Return our name of the checkpoint's tensor `name`, or None where this entry is not about it."""
        return _translate(self._checkpoint_regex, self.ours, name)

    def to_checkpoint(self, name: str) -> str | None:
        """Return the checkpoint's name of our parameter `name`, or None where this entry is not about it."""
        return _translate(self._ours_regex, self.checkpoint, name)

    @cached_property
    def _checkpoint_regex(self) -> re.Pattern[str]:
        return _compile(self.checkpoint)

    @cached_property
    def _ours_regex(self) -> re.Pattern[str]:
        return _compile(self.ours)


@dataclass(frozen=True)
class Reorder(Rename):
    """Our tensor is a concatenation of the checkpoint's row ranges, each row taken once.

    order(config, total): those ranges, for a tensor of `total` rows.
    """

    order: Callable[[Any, int], Rows]

    def rows(self, config: Any, total: int) -> Rows:
        return self.order(config, total)


class Names:
    """A family's table, and the tensors of its checkpoints that are no parameters.

    Args:
        entries: one for each kind of parameter.
        ignore: patterns (as file names have them) of buffers that some checkpoints hold, such as "*.inv_freq".
    """

    def __init__(self, *entries: Rename, ignore: Sequence[str] = ()) -> None:
        self.entries = entries
        self.ignore = tuple(ignore)

    def to_checkpoint(self, ours: str) -> tuple[str, Rename]:
        """Return the checkpoint's name of our parameter, and its entry.

        Raises:
            KeyError: no entry is about it: the family's table is not complete.
        """
        for entry in self.entries:
            if (name := entry.to_checkpoint(ours)) is not None:
                return name, entry
        raise KeyError(f"no entry of the family's Names is about its parameter {ours!r}")

    def to_ours(self, checkpoint: str) -> str | None:
        """Return our name of a checkpoint's tensor, or None where no entry is about it."""
        return next((name for entry in self.entries if (name := entry.to_ours(checkpoint)) is not None), None)

    def ignores(self, checkpoint: str) -> bool:
        """Whether the checkpoint's tensor is known to be no parameter."""
        return any(fnmatchcase(checkpoint, pattern) for pattern in self.ignore)


def pick(rows: Rows, start: int, stop: int) -> Rows:
    """Return the part of `rows` that our rows [start, stop) come from, with ranges that touch joined."""
    picked: Rows = []
    position = 0  # of our row at the current range's start
    for first, last in rows:
        low, high = max(start - position, 0), min(stop - position, last - first)
        if low < high:
            joins = bool(picked) and picked[-1][1] == first + low
            begin = picked.pop()[0] if joins else first + low
            picked.append((begin, first + high))
        position += last - first
    return picked


def inverse(rows: Rows) -> Rows:
    """Return the ranges of our rows that make up the checkpoint's tensor."""
    positions, position = [], 0
    for first, last in rows:
        positions.append((first, position, position + last - first))
        position += last - first
    return [(start, stop) for _, start, stop in sorted(positions)]


def _compile(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<parameter>[^.]+)")
    return re.compile(text)


def _translate(regex: re.Pattern[str], target: str, name: str) -> str | None:
    found = regex.fullmatch(name)
    if found is None:
        return None
    for key, value in found.groupdict().items():
        target = target.replace("*" if key == "parameter" else f"{{{key}}}", value)
    return target
