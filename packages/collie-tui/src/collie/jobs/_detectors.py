"""What a run's steps may show that a person should know: each detector looks for one thing, in bounded memory.

All are told the steps of every rank, in the order in which each wrote them, and answer with what is worth an alert.
None repeats itself before the trouble has gone and come again.
"""

import math
from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Protocol

from collie.events import Step
from collie.jobs._format import format_bytes, format_duration, format_number


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth an alert.

    code: for programs. message: what it is, and a suggested mend, in sentences. step: the index of the step, from 0.
    """

    code: str
    message: str
    rank: int
    step: int


class Detector(Protocol):
    """Looks for one kind of trouble."""

    def see(self, rank: int, step: int, event: Step) -> Finding | None:
        """Take a step of a rank; what it shows, if anything."""


class NotFinite:
    """A loss that is NaN or infinite."""

    def __init__(self) -> None:
        self._told = False

    def see(self, rank: int, step: int, event: Step) -> Finding | None:
        if event.loss is None:
            return None
        before, self._told = self._told, not math.isfinite(event.loss)
        if not self._told or before:
            return None
        mend = "Lower the learning rate, clip the gradient norm, or look at the rows of that step."
        return Finding("nan", f"the loss of step {step + 1} is {format_number(event.loss)}. {mend}", rank, step)


class Spike:
    """A loss far above those before it: by 8 robust standard deviations, and by half."""

    def __init__(self, window: int = 64, least: int = 20) -> None:
        self._losses: deque[float] = deque(maxlen=window)
        self._least, self._quiet_until = least, 0

    def see(self, rank: int, step: int, event: Step) -> Finding | None:
        if event.loss is None or not math.isfinite(event.loss):
            return None
        found = None
        if len(self._losses) >= self._least and step >= self._quiet_until:
            middle = median(self._losses)
            spread = 1.4826 * median(abs(loss - middle) for loss in self._losses)
            if event.loss > middle + 8 * spread and event.loss > 1.5 * middle:
                self._quiet_until = step + self._least
                what = f"the loss of step {step + 1} is {format_number(event.loss)}, and was {format_number(middle)}"
                mend = "If it does not come back by itself: clip the gradient norm, or look at the rows of that step."
                found = Finding("spike", f"{what}. {mend}", rank, step)
        self._losses.append(event.loss)
        return found


class Plateau:
    """A loss whose means over three stretches are no lower than that of the one before them, by a thousandth."""

    def __init__(self, least: int = 100) -> None:
        self._least = least
        self._stretch: list[float] = []
        self._means: deque[float] = deque(maxlen=4)
        self._told_at: float | None = None  # the mean loss at the last alert

    def see(self, rank: int, step: int, event: Step) -> Finding | None:
        if event.loss is None or not math.isfinite(event.loss):
            return None
        self._stretch.append(event.loss)
        size = max(self._least, (event.total or 0) // 20)
        if len(self._stretch) < size:
            return None
        self._means.append(math.fsum(self._stretch) / len(self._stretch))
        self._stretch.clear()
        first, *later = self._means
        if self._told_at is not None and self._means[-1] < 0.99 * self._told_at:
            self._told_at = None  # it falls again
        if self._told_at is not None or len(later) < 3 or min(later) <= 0.999 * first:
            return None
        self._told_at = later[-1]
        what = f"the loss has not fallen for {3 * size} steps: {format_number(later[-1])} on average"
        return Finding("plateau", f"{what}. Evaluate now; stop if it has learnt what it can.", rank, step)


class Slowdown:
    """Steps that take half as long again as those before."""

    def __init__(self, recent: int = 20, earlier: int = 200, warm_up: int = 10) -> None:
        self._recent: deque[float] = deque(maxlen=recent)
        self._earlier: deque[float] = deque(maxlen=earlier)
        self._warm_up = warm_up
        self._told = False

    def see(self, rank: int, step: int, event: Step) -> Finding | None:
        if self._warm_up > 0:  # compiling, reading the first rows
            self._warm_up -= 1
            return None
        if len(self._recent) == self._recent.maxlen and not self._told:
            self._earlier.append(self._recent[0])
        self._recent.append(event.seconds)
        if len(self._earlier) < (self._recent.maxlen or 0):
            return None
        now, before = median(self._recent), median(self._earlier)
        if self._told:
            self._told = now > 1.2 * before
            return None
        self._told = now > 1.5 * before
        if not self._told:
            return None
        what = f"a step takes {format_duration(now)}, and took {format_duration(before)}"
        mend = "Look at the ranks' step times, at data loading, and at what else runs on the machine."
        return Finding("throughput", f"{what}. {mend}", rank, step)


class Creep:
    """Memory that grows from stretch to stretch, six times in a row and by a tenth in all: a leak, or longer rows."""

    def __init__(self, stretch: int = 50, stretches: int = 6) -> None:
        self._size = stretch
        self._peak: dict[int, tuple[int, int]] = {}  # by rank: steps of the stretch, and its peak
        self._peaks: defaultdict[int, deque[int]] = defaultdict(lambda: deque(maxlen=stretches + 1))
        self._told: set[int] = set()

    def see(self, rank: int, step: int, event: Step) -> Finding | None:
        if event.memory is None:
            return None
        count, peak = self._peak.get(rank, (0, 0))
        self._peak[rank] = count + 1, max(peak, event.memory)
        if count + 1 < self._size:
            return None
        peaks = self._peaks[rank]
        peaks.append(self._peak.pop(rank)[1])
        grows = all(earlier < later for earlier, later in pairwise(peaks))
        if len(peaks) != peaks.maxlen or not grows or peaks[-1] < 1.1 * peaks[0]:
            self._told -= {rank} if not grows else set()
            return None
        if rank in self._told:
            return None
        self._told.add(rank)
        grown = f"from {format_bytes(peaks[0])} to {format_bytes(peaks[-1])}"
        mend = "Look for tensors that are kept from step to step (a loss added up without .item())."
        return Finding("memory", f"the memory of rank {rank} grows with every step, {grown}. {mend}", rank, step)


class Straggler:
    """A rank whose steps take longer than those of the others, by a robust z-score of 3.5 and by a fifth."""

    def __init__(self, window: int = 16) -> None:
        self._window = window
        self._seconds: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=window))
        self._seen = 0
        self._told: set[int] = set()

    def see(self, rank: int, step: int, event: Step) -> Finding | None:
        self._seconds[rank].append(event.seconds)
        self._seen += 1
        if self._seen < self._window * len(self._seconds):
            return None
        self._seen = 0
        typical = {one: median(times) for one, times in self._seconds.items()}
        slow = [one for one, score in robust_scores(typical).items() if score > 3.5]
        late = max(slow, key=typical.__getitem__, default=None)
        fresh = late is not None and late not in self._told
        self._told = set(slow)
        if late is None or not fresh:
            return None
        rest = format_duration(median(typical.values()))
        what = f"a step of rank {late} takes {format_duration(typical[late])}, and {rest} elsewhere"
        return Finding("straggler", f"{what}. Look at its GPU's clock and temperature, and at its data.", late, step)


def robust_scores(values: dict[int, float]) -> dict[int, float]:
    """How many standard deviations each value lies above the median, by the median deviation (Iglewicz, Hoaglin 1993).

    Values within a fifth of the median score 0, and so do all where there are fewer than four.
    """
    if len(values) < 4:
        return dict.fromkeys(values, 0.0)
    middle = median(values.values())
    spread = median(abs(value - middle) for value in values.values()) / 0.6745
    least = max(spread, 0.02 * abs(middle)) or 1.0
    return {key: (value - middle) / least if value > 1.2 * middle else 0.0 for key, value in values.items()}


class OfOneRank:
    """Shows a detector the steps of one rank, the first that knows the loss: what is global all ranks tell alike."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._rank: int | None = None

    def see(self, rank: int, step: int, event: Step) -> Finding | None:
        if self._rank is None and event.loss is not None:
            self._rank = rank
        return self._detector.see(rank, step, event) if rank == self._rank else None


def all_detectors() -> list[Detector]:
    """One of each."""
    of_one: list[Detector] = [NotFinite(), Spike(), Plateau(), Slowdown()]
    return [*map(OfOneRank, of_one), Creep(), Straggler()]
