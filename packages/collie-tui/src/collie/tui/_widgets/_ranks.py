"""The table of a run's ranks."""

from statistics import median

from collie.jobs import NOTHING, RankView, RunView, format_bytes, format_count, format_duration, format_number
from collie.tui._widgets._table import Column, Row, Table
from collie.tui._words import Piece, age

_SLOW = 1.2  # times the median step time


class RankTable(Table):
    """A row a rank; the row with the cursor is the rank whose log is shown."""

    BORDER_TITLE = "ranks"
    COLUMNS = (
        Column("RANK", 4, right=True),
        Column("STEP", 6, right=True),
        Column("LOSS", 7, right=True),
        Column("STEP TIME", 9, right=True),
        Column("TGS", 6, right=True),
        Column("MEMORY", 9, right=True),
        Column("EVENT", 5, right=True, priority=1),
        Column("", 8, priority=2),
        Column("DEVICE", 14, flexible=True, priority=3, most=32),
        Column("HOST", 8, flexible=True, priority=4, most=24),
        Column("PID", 7, right=True, priority=5),
    )

    def show_ranks(self, view: RunView | None, now: float, rank: int | None) -> None:
        """Show the ranks of a run, with the cursor on `rank`."""
        ranks = view.ranks if view is not None else ()
        times = [rank.seconds for rank in ranks if rank.seconds]
        limit = median(times) * _SLOW if len(times) > 1 else float("inf")
        front = max((rank.step for rank in ranks if rank.step is not None), default=0)
        self.show([_row(entry, now, limit, front) for entry in ranks], key=None if rank is None else str(rank))


def _row(rank: RankView, now: float, limit: float, front: int) -> Row:
    slow = rank.seconds is not None and rank.seconds > limit
    lagging = rank.step is not None and front - rank.step > 1
    return Row(
        str(rank.rank),
        (
            (str(rank.rank), "accent"),
            (NOTHING if rank.step is None else str(rank.step), "warn" if lagging else ""),
            (format_number(rank.loss), ""),
            (f"{'▴' if slow else ''}{_seconds(rank.seconds)}", "warn" if slow else ""),
            (format_count(rank.tgs), ""),
            (format_bytes(rank.memory), ""),
            (age(rank.t, now), "dim"),
            _outcome(rank),
            (rank.device or NOTHING, "dim"),
            (rank.host or NOTHING, "dim"),
            (NOTHING if rank.pid is None else str(rank.pid), "dim"),
        ),
    )


def _seconds(seconds: float | None) -> str:
    """Step times stand below each other, so they keep one unit where they can."""
    if seconds is None or seconds < 0.1 or seconds >= 100:
        return format_duration(seconds)
    return f"{seconds:.2f}s" if seconds < 10 else f"{seconds:.1f}s"


def _outcome(rank: RankView) -> Piece:
    if rank.outcome is None:
        return ("", "")
    return (rank.outcome, {"failed": "bad", "stopped": "warn"}.get(rank.outcome, "info"))
