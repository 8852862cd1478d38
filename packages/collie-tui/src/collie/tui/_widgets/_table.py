"""A table that paints only the lines on the screen: thousands of rows cost no more than those that are seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from collie.tui._theme import Roles
from collie.tui._words import Piece

_GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        width: characters; for a flexible column the least it may have.
        right: whether numbers stand at its right edge.
        flexible: whether it takes the width that is left.
        priority: columns of the highest number are left out first where the table is too narrow.
        most: the most that a flexible column takes.
    """

    title: str
    width: int
    right: bool = False
    flexible: bool = False
    priority: int = 0
    most: int = 60


@dataclass(frozen=True, slots=True)
class Row:
    """A row: what it is about, and a piece of text a column."""

    key: str
    cells: tuple[Piece, ...]


class Table(ScrollView, Roles, can_focus=True):
    """Rows under a heading, with a cursor that stays on its row when the rows around it change."""

    COLUMNS: Sequence[Column] = ()
    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--heading", "table--cursor", "table--cursor-blurred"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "move(-1000000)", "First", show=False),
        Binding("end,G", "move(1000000)", "Last", show=False),
    ]

    cursor: reactive[int] = reactive(0, repaint=True)

    class Highlighted(Message):
        """The cursor is on another row."""

        def __init__(self, table: "Table", key: str) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> "Table":
            """The table."""
            return self.table

    class Chosen(Highlighted):
        """A row was clicked a second time."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: tuple[Row, ...] = ()
        self._shown: list[tuple[int, Column, int]] = []  # number of the column, the column, its width

    @property
    def key(self) -> str | None:
        """The key of the row with the cursor."""
        return self._rows[self.cursor].key if 0 <= self.cursor < len(self._rows) else None

    @property
    def rows(self) -> tuple[Row, ...]:
        """What the table holds."""
        return self._rows

    def show(self, rows: Sequence[Row], *, key: str | None = None) -> None:
        """Show these rows, with the cursor on the row `key`, or else on the row that had it; repaint what changed."""
        rows = tuple(rows)
        key = key if key is not None else self.key
        before, self._rows = self._rows, rows
        if len(before) != len(rows):
            self.virtual_size = Size(self.size.width, len(rows) + 1)
            self.refresh()
        elif before != rows:
            for number, (old, new) in enumerate(zip(before, rows, strict=True)):
                if old != new:
                    self._refresh_row(number)
        place = next((number for number, row in enumerate(rows) if row.key == key), None)
        if place is None:
            place = min(self.cursor, max(0, len(rows) - 1))
        if place != self.cursor:
            self.set_reactive(Table.cursor, place)
            self.refresh()
            self._keep_in_sight()
        if self.key is not None and self.key != (before[self.cursor].key if self.cursor < len(before) else None):
            self.post_message(self.Highlighted(self, self.key))

    def _refresh_row(self, number: int) -> None:
        line = number + 1 - self.scroll_offset.y
        if 0 < line < self.size.height:
            self.refresh(Region(0, line, self.size.width, 1))

    def action_move(self, by: int) -> None:
        """Move the cursor by rows."""
        if self._rows:
            self.cursor = max(0, min(len(self._rows) - 1, self.cursor + by))

    def action_page(self, by: int) -> None:
        """Move the cursor by screens."""
        self.action_move(by * max(1, self.size.height - 2))

    def watch_cursor(self) -> None:
        """Tell of the row and scroll to it."""
        self._keep_in_sight()
        if self.key is not None:
            self.post_message(self.Highlighted(self, self.key))

    def _keep_in_sight(self) -> None:
        visible = max(1, self.size.height - 1)
        top = self.scroll_offset.y
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False)
        elif self.cursor >= top + visible:
            self.scroll_to(y=self.cursor - visible + 1, animate=False)

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on the row; choose the one that has it."""
        number = event.y - 1 + self.scroll_offset.y
        if event.y < 1 or not 0 <= number < len(self._rows):
            return
        if number == self.cursor and event.chain > 1:
            self.post_message(self.Chosen(self, self._rows[number].key))
        self.cursor = number

    def on_resize(self) -> None:
        """Fit the columns to the new width."""
        self._fit(self.size.width)
        self.virtual_size = Size(self.size.width, len(self._rows) + 1)
        self._keep_in_sight()

    def _fit(self, width: int) -> None:
        columns = list(enumerate(self.COLUMNS))
        while len(columns) > 1 and sum(column.width + _GAP for _, column in columns) > width:
            least = max(columns, key=lambda entry: (entry[1].priority, entry[0]))
            columns.remove(least)
        left = width - sum(column.width + _GAP for _, column in columns)
        self._shown = []
        for number, column in columns:
            extra = max(0, min(left, column.most - column.width)) if column.flexible else 0
            left -= extra
            self._shown.append((number, column, column.width + extra))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """The heading stays at the top; below it the rows at the scroll offset."""
        width = self.size.width
        base = self.rich_style
        if y == 0:
            heading = self.get_component_rich_style("table--heading")
            pieces = [(column.title, "") for column in self.COLUMNS]
            return self._line(pieces, base + heading, width)
        number = y - 1 + self.scroll_offset.y
        if number >= len(self._rows):
            return Strip.blank(width, base)
        style = base
        if number == self.cursor:
            name = "table--cursor" if self.has_focus else "table--cursor-blurred"
            style = base + self.get_component_rich_style(name)
        return self._line(self._rows[number].cells, style, width)

    def _line(self, cells: Sequence[Piece], style: Style, width: int) -> Strip:
        segments = [Segment(" ", style)]
        for number, column, size in self._shown:
            text, role = cells[number]
            segments.append(Segment(_fitted(text, size, column.right), style + self.role(role)))
            segments.append(Segment(" " * _GAP, style))
        return Strip(segments).adjust_cell_length(width, style)


def _fitted(text: str, width: int, right: bool) -> str:
    """Cut with an ellipsis, or fill with blanks on the side that the column leaves free."""
    cut = set_cell_size(text, width)
    if cut.rstrip() != text.rstrip() and width > 0:
        return set_cell_size(text, width - 1).rstrip().ljust(width - 1) + "…"
    return cut.rstrip().rjust(width) if right else cut
