"""The first line: what this is, how many runs there are, where, and the time."""

import time
from collections.abc import Sequence

from rich.text import Text
from textual.widgets import Static

from collie.jobs import State, Summary
from collie.tui._theme import Roles


class Banner(Static, Roles):
    """CoLLiE  3 runs · 1 running · host   14:32"""

    def __init__(self, host: str) -> None:
        super().__init__()
        self._host = host
        self._shown = ""

    def show(self, runs: Sequence[Summary], now: float, problem: str = "") -> None:
        """Count the runs."""
        live = sum(run.status.live for run in runs)
        failed = sum(run.status.state is State.FAILED for run in runs)
        lost = sum(run.state_word == "lost" for run in runs)
        unreadable = sum(run.unreadable for run in runs)
        counts = [f"{len(runs)} run{'' if len(runs) == 1 else 's'}"]
        if live:
            counts.append(f"{live} live")
        counts += [f"{n} {word}" for n, word in ((failed, "failed"), (lost, "lost"), (unreadable, "unreadable")) if n]
        clock = time.strftime("%H:%M", time.localtime(now))
        told = problem or " · ".join(counts)
        shown = f"{told}{clock}{self.size.width}{self.app.theme}"
        if shown == self._shown:
            return
        self._shown = shown
        text = Text.assemble((" CoLLiE ", self.role("brand")), "  ", (told, self.role("bad" if problem else "")))
        text.append_text(self.paint((f" · {self._host}", "dim")))
        room = self.size.width - text.cell_len - len(clock) - 1
        if room > 0:
            text.append(" " * room)
            text.append_text(self.paint((clock, "dim")))
        text.no_wrap = True
        self.update(text)
