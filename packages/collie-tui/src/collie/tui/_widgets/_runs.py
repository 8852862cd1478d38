"""The table of runs."""

import time
from collections.abc import Sequence

from collie.jobs import NOTHING, Summary, format_count, format_duration, format_number
from collie.tui._widgets._table import Column, Row, Table
from collie.tui._words import age, is_stale, progress, state_piece


class RunTable(Table):
    """A row a run; live ones first."""

    COLUMNS = (
        Column("RUN", 14, flexible=True, most=44),
        Column("STATE", 12),
        Column("STEP", 11, right=True),
        Column("LOSS", 7, right=True),
        Column("TOK/S", 6, right=True, priority=2),
        Column("ETA", 6, right=True, priority=1),
        Column("EVENT", 5, right=True, priority=3),
        Column("RANKS", 5, right=True, priority=4),
        Column("STARTED", 12, priority=5),
        Column("SCRIPT", 12, flexible=True, priority=6),
    )

    def show_runs(self, runs: Sequence[Summary], now: float, key: str | None = None) -> None:
        """Show the runs as they are at `now` (seconds since the epoch)."""
        names = [run.name for run in runs]
        self.show([_row(run, now, names.count(run.name) > 1) for run in runs], key=key)


def _row(run: Summary, now: float, ambiguous: bool) -> Row:
    live = run.status.live
    quiet = "" if live else "dim"
    bad = run.loss is not None and format_number(run.loss) in ("nan", "inf", "-inf")
    started = NOTHING if run.created is None else time.strftime("%d %b %H:%M", time.localtime(run.created))
    return Row(
        run.id,
        (
            (f"{run.name} ·{run.mark}" if ambiguous and run.mark else run.name, "strong" if live else ""),
            state_piece(run),
            (progress(run), quiet),
            (format_number(run.loss), "bad" if bad else quiet),
            (format_count(run.throughput), quiet),
            (format_duration(run.eta), quiet),
            (age(run.t, now), "bad" if is_stale(run, None, now) else "dim"),
            (NOTHING if run.nproc is None else str(run.nproc), "dim"),
            (started, "dim"),
            (run.script.rpartition("/")[2] or NOTHING, "dim"),
        ),
    )
