"""A stop: the order to do it, kept in the run folder, and the ladder of means from polite to final."""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path

from collie.events import RunFolder

_FILE = "stop.json"


class Means(StrEnum):
    """Where on the ladder a stop begins."""

    STEP = "step"
    """The ranks end after the step they are in."""
    TERM = "term"
    """TERM to torchrun, which passes it on to each worker."""
    KILL = "kill"
    """KILL to each worker's process group."""


@dataclass(frozen=True, slots=True)
class StopOrder:
    """What was asked of the supervisor, and when; it stays in the run folder as the record that a stop was asked.

    Attributes:
        means: the rung on which the stop begins.
        t: seconds since the epoch.
        by: who asked, in words.
        step_grace: seconds the ranks have to reach a step's end before TERM.
        term_grace: seconds the workers have after TERM before KILL.
    """

    means: Means
    t: float = field(default_factory=time.time)
    by: str = "collie-tui"
    step_grace: float = 300.0
    term_grace: float = 30.0

    def write(self, run: RunFolder) -> None:
        """Put the order into the run folder, whole or not at all."""
        target = Path(run.path) / _FILE
        scratch = target.with_name(f".{_FILE}.{os.getpid()}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        os.replace(scratch, target)

    @classmethod
    def read(cls, run: RunFolder) -> "StopOrder | None":
        """The order in the run folder, None when none was given."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            values = json.loads((Path(run.path) / _FILE).read_text(encoding="utf-8"))
            return cls(
                Means(values["means"]),
                float(values["t"]),
                str(values["by"]),
                float(values["step_grace"]),
                float(values["term_grace"]),
            )
        return None


class Rung(IntEnum):
    """How far a stop has gone."""

    NONE = 0
    REQUEST = 1
    TERM = 2
    KILL = 3


_FIRST_RUNG = {Means.STEP: Rung.REQUEST, Means.TERM: Rung.TERM, Means.KILL: Rung.KILL}


class Ladder:
    """Says when a stop climbs to its next rung; it knows the time it is given and sends nothing itself.

    A later order may begin higher and so hurry the stop, never lower and so call it back.
    """

    def __init__(self) -> None:
        self.order: StopOrder | None = None
        self.rung = Rung.NONE
        self._since = 0.0

    def give(self, order: StopOrder) -> None:
        """Take the next order; one on or below the present rung changes nothing but the time limits."""
        self.order = order

    def climb(self, now: float, *, ranks_listen: bool) -> Rung | None:
        """The rung to act on at monotonic time `now`, None when there is nothing new to do.

        Ranks that write no events read no requests, so the first rung is left out for them.
        """
        if self.order is None:
            return None
        lowest = _FIRST_RUNG[self.order.means]
        if lowest is Rung.REQUEST and self.rung is Rung.NONE and not ranks_listen:
            lowest = Rung.TERM
        target = max(self.rung, lowest)
        waited = now - self._since
        if target is self.rung and (
            (self.rung is Rung.REQUEST and waited >= self.order.step_grace)
            or (self.rung is Rung.TERM and waited >= self.order.term_grace)
        ):
            target = Rung(self.rung + 1)
        if target is self.rung:
            return None
        self.rung, self._since = target, now
        return target

    def go_on(self, now: float) -> Rung:
        """The next rung, without waiting: the present one could not be stood on."""
        self.rung, self._since = Rung(self.rung + 1), now
        return self.rung
