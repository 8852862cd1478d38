"""The loss curve, drawn in braille."""

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from collie.jobs import Curve, format_number
from collie.tui._braille import Span, draw, spans
from collie.tui._theme import Roles

_EMPTY = "\u2800"
_LABEL = 8  # characters left of the curve


class Chart(Widget, Roles):
    """Loss over steps, with marks under the steps at which an evaluation ended and red ones where it was not finite.

    It draws when its curve or its size changed, and then hands out lines.
    """

    BORDER_TITLE = "loss"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._curve = Curve()
        self._marks: tuple[int, ...] = ()
        self._live = True
        self._strips: list[Strip] | None = None

    def show(self, curve: Curve, marks: tuple[int, ...], *, live: bool = True) -> None:
        """Draw this curve; live: whether more of it may come."""
        if curve == self._curve and marks == self._marks and live == self._live:
            return
        self._curve, self._marks, self._live = curve, marks, live
        self._redraw()

    def on_resize(self) -> None:
        """Draw for the new size."""
        self._redraw()

    def notify_style_update(self) -> None:
        """Draw in the new colours."""
        super().notify_style_update()
        self._redraw()

    def _redraw(self) -> None:
        self._strips = None
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """A line of the picture."""
        if self._strips is None:
            self._strips = self._draw()
        blank = Strip.blank(self.size.width, self.rich_style)
        return self._strips[y] if y < len(self._strips) else blank

    def _draw(self) -> list[Strip]:
        width, height = self.size.width - _LABEL - 1, self.size.height - 1
        base = self.rich_style
        dim = base + self.role("dim")
        if width < 8 or height < 2:
            return []
        if not self._curve.points:
            text = "no finite loss" if self._curve.gaps else "no loss yet" if self._live else "no loss"
            lines = [Strip.blank(self.size.width, base)] * (height // 2)
            return [*lines, Strip([Segment(text.center(self.size.width), dim)])]
        x, y = spans(self._curve.points)
        picture = draw(self._curve.points, x, y, width, height)
        axis = base + self.role("faint")
        line, band = base + self.role("accent"), base + self.role("faint")
        labels = {0: y.high, height - 1: y.low}
        if height >= 5:
            labels[(height - 1) // 2] = y.high - (y.high - y.low) * ((height - 1) // 2) / (height - 1)
        strips = []
        for number, (cells, noise) in enumerate(zip(picture.line, picture.band, strict=True)):
            label = format_number(labels[number]) if number in labels else ""
            edge = "┤" if number in labels else "│"
            segments = [Segment(label.rjust(_LABEL - 1) + " ", dim), Segment(edge, axis)]
            segments += [
                Segment(cell, line) if cell != _EMPTY else Segment(spread, band)
                for cell, spread in zip(cells, noise, strict=True)
            ]
            strips.append(Strip(segments).simplify())
        strips.append(self._axis(x, width, dim, axis))
        return strips

    def _axis(self, x: Span, width: int, dim: Style, axis: Style) -> Strip:
        """The line under the curve: first and last step, marks of evaluations and of values that are not finite."""
        base = self.rich_style
        left, right = f"{x.low:.0f}", f"step {x.high:.0f}"
        cells: list[tuple[str, Style]] = [("─", axis)] * width
        for mark in self._marks:
            if x.low <= mark <= x.high:
                cells[x.place(mark, width)] = ("▴", base + self.role("info"))
        for gap in self._curve.gaps:
            cells[x.place(gap, width)] = ("×", base + self.role("bad"))
        for start, text in ((0, left), (width - len(right), right)):
            if start >= 0 and len(left) + len(right) + 2 <= width:
                for offset, character in enumerate(f"{text}"):
                    cells[start + offset] = (character, dim)
        segments = [Segment(" " * _LABEL, dim), Segment("└", axis)]
        segments += [Segment(character, style) for character, style in cells]
        return Strip(segments).simplify()
