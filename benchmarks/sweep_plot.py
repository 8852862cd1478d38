"""A plot of a sweep: one curve for each optimizer over learning rates, as an SVG written by hand."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

Points = Sequence[tuple[float, float | None]]  # (learning rate, perplexity), None where the run diverged

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 160, 40, 56
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind, too


def svg(curves: Mapping[str, Points], before: float, title: str) -> str:
    """Return the plot: both axes logarithmic, `before` a dashed line.

    Runs that diverged, or ended far above `before`, are crosses at the upper edge: what matters is below.

    Raises:
        ValueError: there is no point.
    """
    rates = [rate for points in curves.values() for rate, _ in points]
    if not rates:
        raise ValueError("a plot needs at least one run.")
    reached = [value for points in curves.values() for _, value in points if value is not None]
    low, high = min([before, *reached]) / 1.05, min(max([before, *reached]), 1.2 * before) * 1.05
    x = _Scale(min(rates) / 1.5, max(rates) * 1.5, LEFT, WIDTH - RIGHT)
    y = _Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_text(WIDTH / 2, 22, title, "middle", size=15)]
    parts += [_line(LEFT, y(value), WIDTH - RIGHT, y(value), "#ddd") for value in _ticks(low, high)]
    parts += [_text(LEFT - 8, y(value) + 4, f"{value:g}", "end") for value in _ticks(low, high)]
    for exponent in range(math.ceil(math.log10(min(rates) / 1.5)), math.floor(math.log10(max(rates) * 1.5)) + 1):
        at = x(10.0**exponent)
        parts += [_line(at, TOP, at, HEIGHT - BOTTOM, "#ddd")]
        parts += [_text(at, HEIGHT - BOTTOM + 18, f"1e{exponent}", "middle")]
    parts += [_line(LEFT, y(before), WIDTH - RIGHT, y(before), "#555", dashed=True)]
    parts += [_text(WIDTH - RIGHT + 6, y(before) + 4, "before", "start", "#555")]
    for number, (name, points) in enumerate(curves.items()):
        parts += _curve(name, points, x, y, high, COLOURS[number % len(COLOURS)], TOP + 40 + 20 * number)
    parts += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "learning rate", "middle")]
    parts += [_text(LEFT, TOP - 8, "held-out perplexity", "middle")]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', *parts, "</svg>\n"])


class _Scale:
    """Places numbers between `low` and `high` on a line from `start` to `end`, logarithmically."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._range = math.log(low), math.log(high) - math.log(low)
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        return self._start + self._length * (math.log(value) - self._low) / self._range


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the two, some four to ten."""
    step = 10 ** math.floor(math.log10(high - low))
    for divided in (step, step / 2, step / 5):
        found = [n * divided for n in range(math.ceil(low / divided), math.floor(high / divided) + 1)]
        if len(found) >= 4:
            break
    return found


def _curve(name: str, points: Points, x: _Scale, y: _Scale, high: float, colour: str, key: float) -> list[str]:
    """The lines between neighbours that both ended well, a mark for each run, and the name in the key."""
    places = [(x(rate), y(value) if value is not None and value <= high else None) for rate, value in sorted(points)]
    parts = [
        _line(x1, y1, x2, y2, colour, 2) for (x1, y1), (x2, y2) in pairwise(places) if y1 is not None and y2 is not None
    ]
    for at, height in places:
        if height is None:
            parts += [_line(at - 4, TOP - 4, at + 4, TOP + 4, colour, 2)]
            parts += [_line(at - 4, TOP + 4, at + 4, TOP - 4, colour, 2)]
        else:
            parts.append(f'<circle cx="{at:.1f}" cy="{height:.1f}" r="4" fill="{colour}"/>')
    parts.append(f'<circle cx="{WIDTH - RIGHT + 14}" cy="{key:.1f}" r="5" fill="{colour}"/>')
    parts.append(_text(WIDTH - RIGHT + 26, key + 4, name, "start"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222", size: int = 12) -> str:
    style = f'text-anchor="{anchor}" fill="{colour}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
