"""Curves in braille: each character cell is two dots wide and four high."""

from collections.abc import Sequence
from dataclasses import dataclass

from collie.jobs import Point

_BLANK = 0x2800
# Bit of the dot in column c (0, 1) and row r (0 at the top) of a cell, as Unicode numbers them.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of an axis."""

    low: float
    high: float

    def place(self, value: float, cells: int) -> int:
        """The cell, of `cells`, that `value` falls into; values outside fall into the nearest."""
        if self.high <= self.low:
            return cells // 2
        return min(cells - 1, max(0, round((value - self.low) / (self.high - self.low) * (cells - 1))))


def spans(points: Sequence[Point]) -> tuple[Span, Span]:
    """x and y spans that hold all points; a flat curve gets some room above and below."""
    x = Span(points[0].first, max(point.last for point in points))
    low, high = min(point.low for point in points), max(point.high for point in points)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        room = max(abs(high) * 0.05, 1e-6)
        low, high = low - room, high + room
    return x, Span(low, high)


@dataclass(frozen=True, slots=True)
class Picture:
    """Lines of equal length, the top one first.

    Attributes:
        line: the mean of the values in each dot column, joined to a line without holes.
        band: all values from the least to the greatest in each dot column.
    """

    line: list[str]
    band: list[str]


def draw(points: Sequence[Point], x: Span, y: Span, width: int, height: int) -> Picture:
    """Draw a curve into `height` lines of `width` cells; columns without values are bridged by a straight line."""
    columns, rows = 2 * width, 4 * height
    means: dict[int, list[float]] = {}
    band = [[_BLANK] * width for _ in range(height)]
    for point in points:
        column = x.place((point.first + point.last) / 2, columns)
        means.setdefault(column, []).append(point.mean)
        _bar(band, rows, column, y.place(point.low, rows), y.place(point.high, rows))
    line = [[_BLANK] * width for _ in range(height)]
    before: tuple[int, int] | None = None
    for column, values in sorted(means.items()):
        here = (column, y.place(sum(values) / len(values), rows))
        _bridge(line, rows, before or here, here)
        before = here
    return Picture(["".join(map(chr, cells)) for cells in line], ["".join(map(chr, cells)) for cells in band])


def _bar(cells: list[list[int]], rows: int, column: int, low: int, high: int) -> None:
    for dot in range(low, high + 1):
        row = rows - 1 - dot
        cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]


def _bridge(cells: list[list[int]], rows: int, left: tuple[int, int], right: tuple[int, int]) -> None:
    """Draw from dot to dot (column, height), so that the line has no hole however steep it is."""
    (start, low), (end, high) = left, right
    _bar(cells, rows, start, low, low)
    before = low
    for column in range(start + 1, end + 1):
        dot = round(low + (high - low) * (column - start) / (end - start))
        # Half of a steep climb is drawn in each of its two columns.
        middle = (before + dot) // 2
        _bar(cells, rows, column - 1, min(before, middle), max(before, middle))
        _bar(cells, rows, column, min(dot, middle), max(dot, middle))
        before = dot
