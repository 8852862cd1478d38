"""One rank's log: opens at its end and follows it, until somebody scrolls up."""

from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from collie.tui._source import LogView
from collie.tui._theme import Roles


class LogPane(ScrollView, Roles, can_focus=True):
    """Shows the lines of a log view; only those on the screen are ever painted."""

    BORDER_TITLE = "log"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("end,G", "to_end", "Follow", show=False),
        Binding("k", "scroll_up", show=False),
        Binding("j", "scroll_down", show=False),
        Binding("g", "scroll_home", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._view: LogView | None = None
        self._lines: tuple[str, ...] = ()
        self._new = 0
        self._follow = True

    def show(self, view: LogView | None) -> None:
        """Show a log as it is now, at its end if the end was in sight or the log is another one."""
        if view is self._view:
            return
        before, self._view = self._view, view
        same = before is not None and view is not None and before.key == view.key
        self._follow = self._follow or not same
        shift = _first_line(view) - _first_line(before)
        self._lines = _all_lines(view)
        if same and before is not None and view is not None:
            came = view.first + len(view.lines) - before.first - len(before.lines)
            self._new = 0 if self._follow else self._new + came
        else:
            self._new = 0
        wide = max((cell_len(line) for line in self._lines[-500:]), default=0)
        self.virtual_size = Size(max(wide, 1), len(self._lines))
        if self._follow:
            self.scroll_end(animate=False, immediate=True, x_axis=False)
        elif same and shift:
            self.scroll_relative(y=-shift, animate=False)  # the same lines stay in sight
        self._retitle()
        self.refresh()

    def _retitle(self) -> None:
        view = self._view
        if view is None:
            self.border_title = "log"
            return
        new = f" · ↓ {self._new} new" if self._new else ""
        self.border_title = f"log · rank {view.rank} · {view.stream}{new}"

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Whoever comes back to the end has seen what is new."""
        super().watch_scroll_y(old_value, new_value)
        self._follow = self.is_vertical_scroll_end
        if self._new and self._follow:
            self._new = 0
            self._retitle()

    def on_resize(self) -> None:
        """The end stays in sight."""
        if self._follow:
            self.scroll_end(animate=False, immediate=True, x_axis=False)

    def action_to_end(self) -> None:
        """Follow again."""
        self.scroll_end(animate=False)

    def render_line(self, y: int) -> Strip:
        """The line at the scroll offset, or a word about an empty log."""
        width = self.size.width
        scroll_x, scroll_y = self.scroll_offset
        number = y + scroll_y
        base = self.rich_style
        if number >= len(self._lines):
            text = self._empty() if y == 0 and not self._lines else ""
            return Strip([Segment(text, base + self.role("dim"))]).adjust_cell_length(width, base)
        line = Text(self._lines[number], no_wrap=True, end="")
        above = number == 0 and self._view is not None and self._view.cut
        line.stylize(base + self.role("dim" if above else _role(self._lines[number])))
        selection = self.text_selection
        if selection is not None and (span := selection.get_span(number)) is not None:
            start, end = span
            style = self.screen.get_component_rich_style("screen--selection")
            line.stylize(style, start, len(line) if end == -1 else end)
        strip = Strip(line.render(self.app.console)).crop_extend(scroll_x, scroll_x + width, base)
        return strip.apply_offsets(scroll_x, number)

    def _empty(self) -> str:
        if self._view is None or self._view.path is None:
            return "no log: torchrun has not started this rank"
        return f"{self._view.stream} is empty"

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """What the mouse marked, to be copied."""
        return selection.extract("\n".join(self._lines)), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        """Paint the mark."""
        self.refresh()


def _first_line(view: LogView | None) -> int:
    """The number that the line at the top of the pane has, or would have."""
    return 0 if view is None else view.first - int(view.cut)


def _all_lines(view: LogView | None) -> tuple[str, ...]:
    """What the pane holds: a sign where earlier lines are left out, the lines, the one being written."""
    if view is None:
        return ()
    above = (f"… earlier lines in {view.path}",) if view.cut else ()
    return (*above, *view.lines, view.partial) if view.partial else (*above, *view.lines)


def _role(line: str) -> str:
    """Colour what looks like trouble; it is the words that say it."""
    start = line.lstrip()[:160]
    if any(word in start for word in ("Error", "ERROR", "Traceback", "FAILED", "CRITICAL")):
        return "bad"
    if any(word in start for word in ("Warning", "WARNING", "WARN")):
        return "warn"
    return ""
