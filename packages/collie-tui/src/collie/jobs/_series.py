"""A curve of any length in bounded memory."""

import math
from dataclasses import dataclass

from collie.jobs._fields import drawable


@dataclass(frozen=True, slots=True)
class Point:
    """What a stretch of a curve did.

    Attributes:
        first: the first x in it.
        last: the last x in it.
        low: least y.
        high: greatest y.
        mean: mean y.
    """

    first: float
    last: float
    low: float
    high: float
    mean: float


@dataclass(frozen=True, slots=True)
class Curve:
    """An immutable picture of a series.

    Attributes:
        points: stretches of equal count, in the order they came.
        count: how many values went in, finite or not; it tells a changed curve from an unchanged one.
        gaps: the latest x at which y was not a finite number.
    """

    points: tuple[Point, ...] = ()
    count: int = 0
    gaps: tuple[float, ...] = ()


class Series:
    """Takes (x, y) one at a time and keeps at most `capacity` stretches: when full, neighbours are joined in pairs.

    Nothing is lost that a chart of `capacity` columns could show: each stretch keeps its least and greatest value.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._stride = 1
        self._points: list[Point] = []
        self._open: list[tuple[float, float]] = []
        self._gaps: list[float] = []
        self._count = 0
        self._curve = Curve()

    def add(self, x: float, y: float | None) -> None:
        """Take a value; None and numbers that are not finite are kept as gaps."""
        self._count += 1
        if y is None or not drawable(y):
            self._gaps = [*self._gaps[-31:], x]
            return
        self._open.append((x, y))
        if len(self._open) == self._stride:
            self._points.append(_stretch(self._open))
            self._open = []
        if len(self._points) >= self._capacity:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [_join(left, right) for left, right in pairs]
            self._stride *= 2

    def curve(self) -> Curve:
        """The series as it is now; the same object as long as nothing was added."""
        if self._curve.count != self._count:
            points = (*self._points, _stretch(self._open)) if self._open else tuple(self._points)
            self._curve = Curve(points, self._count, tuple(self._gaps))
        return self._curve


def _stretch(values: list[tuple[float, float]]) -> Point:
    ys = [y for _, y in values]
    return Point(values[0][0], values[-1][0], min(ys), max(ys), math.fsum(ys) / len(ys))


def _join(left: Point, right: Point) -> Point:
    low, high = min(left.low, right.low), max(left.high, right.high)
    return Point(left.first, right.last, low, high, (left.mean + right.mean) / 2)
