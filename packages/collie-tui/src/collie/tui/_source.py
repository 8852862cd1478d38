"""Reads the runs for the dashboard: off the event loop, what is new only, into one immutable snapshot a time."""

import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from collie.events import RunFolder, list_runs
from collie.jobs import LogTail, Peeker, RankLogs, RunReader, RunView, State, Summary, rank_logs, summary, unreadable

Stream = Literal["stdout", "stderr"]

_LOG_START = 256 * 1024  # bytes before a log's end at which reading it begins
_LOG_LINES = 5000  # lines of a log that are kept
_READERS = 4  # runs whose events stay read in memory
_RESCAN = 2.0  # seconds between two looks for new rank folders


@dataclass(frozen=True, slots=True)
class Query:
    """What the screen shows and so wants to know.

    Attributes:
        run: id of the selected run, None for the first.
        rank: the rank whose log is shown, None for the one that matters (the first that failed, else rank 0).
        stream: which of its logs, None for the one that matters (stderr of a failed run, else stdout).
    """

    run: str | None = None
    rank: int | None = None
    stream: Stream | None = None


@dataclass(frozen=True, slots=True)
class LogView:
    """The end of one log file.

    Attributes:
        run: id of its run.
        first: number of the first line held, counted from where reading began.
        lines: the last whole lines.
        partial: the line being written.
        cut: whether the file has more before the first line.
        ranks: ranks that have logs.
    """

    run: str
    rank: int
    stream: Stream
    path: Path | None = None
    first: int = 0
    lines: tuple[str, ...] = ()
    partial: str = ""
    cut: bool = False
    ranks: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, Path | None]:
        """Tells one file from another."""
        return (self.run, self.path)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the dashboard shows at one moment.

    Attributes:
        runs: live ones first, each group newest first.
        run: the selected one.
        log: the log that is shown.
        problem: why nothing could be read, "" when all went well.
    """

    runs: tuple[Summary, ...] = ()
    run: RunView | None = None
    log: LogView | None = None
    problem: str = ""


class Source:
    """Holds what has been read so far. All methods belong to one thread; what they return may be handed to others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = socket.gethostname()
        self._peeker = Peeker()
        self._ended: dict[str, tuple[object, Summary]] = {}
        self._readers: OrderedDict[str, RunReader] = OrderedDict()
        self._log: _LogSource | None = None

    def read(self, query: Query) -> Snapshot:
        """Look at everything once. A run that is not there any more, or none, asks for the first one."""
        folders = {run.id: run for run in list_runs(self.root)}
        runs = {name: self._summary(run) for name, run in folders.items() if name != query.run}
        if query.run in folders:
            view = self._view(folders[query.run])
        elif runs:
            view = self._view(folders[min(runs.values(), key=_rank).id])
        else:
            return Snapshot()
        chosen = view.summary.id
        runs[chosen] = view.summary
        log = self._read_log(folders[chosen], view, query)
        return Snapshot(tuple(sorted(runs.values(), key=_rank)), view, log)

    def _view(self, run: RunFolder) -> RunView:
        reader = self._readers.pop(run.id, None) or RunReader(run)
        self._readers[run.id] = reader
        while len(self._readers) > _READERS:
            self._readers.popitem(last=False)
        try:
            reader.refresh()
            return reader.view()
        except Exception as error:  # whatever is wrong with one run, the others are shown
            return RunView(unreadable(run, error))

    def _summary(self, run: RunFolder) -> Summary:
        """A run that has ended is read again only when its exit file, or its events where it has none, are others."""
        exit_time = _modified(run.path / "exit.json")
        # Taken before the reading: what comes in between is read the next time.
        stamp = exit_time or tuple(map(_size, run.event_files()))
        known = self._ended.get(run.id)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            now = summary(run, self._peeker)
        except Exception as error:
            return unreadable(run, error)
        if now.status.state.ended and (exit_time or not now.status.managed):
            self._ended[run.id] = (stamp, now)
        return now

    def _read_log(self, run: RunFolder, view: RunView, query: Query) -> LogView:
        if self._log is None or self._log.run.id != run.id:
            self._log = _LogSource(run)
        failed = view.summary.status.state is State.FAILED
        failure = view.summary.status.failure
        rank = query.rank
        if rank is None:
            rank = failure.rank if failure is not None and failure.rank is not None else 0
        return self._log.read(rank, query.stream or ("stderr" if failed else "stdout"))


class _LogSource:
    """Follows one of a run's logs; another one begins anew at its end."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._ranks: Sequence[RankLogs] = ()
        self._next_scan = 0.0
        self._tail: LogTail | None = None
        self._view = LogView(run.id, 0, "stdout")

    def read(self, rank: int, stream: Stream) -> LogView:
        """The log as it is now; the same object as long as nothing changed."""
        if time.monotonic() >= self._next_scan:
            self._ranks = rank_logs(self.run)
            self._next_scan = time.monotonic() + _RESCAN
        logs = next((logs for logs in self._ranks if logs.rank == rank), None)
        path = getattr(logs, stream) if logs is not None else None
        ranks = tuple(entry.rank for entry in self._ranks)
        if (rank, stream, path) != (self._view.rank, self._view.stream, self._view.path):
            self._tail = LogTail(path, start=_LOG_START) if path is not None else None
            self._view = LogView(self.run.id, rank, stream, path, cut=_size(path) > _LOG_START)
        if ranks != self._view.ranks:
            self._view = replace(self._view, ranks=ranks)
        if self._tail is not None:
            self._take(self._tail)
        return self._view

    def _take(self, tail: LogTail) -> None:
        fresh = tail.read()
        if not fresh and tail.partial == self._view.partial:
            return
        lines = (*self._view.lines, *fresh)
        surplus = max(0, len(lines) - _LOG_LINES)
        self._view = replace(
            self._view,
            lines=lines[surplus:],
            first=self._view.first + surplus,
            partial=tail.partial,
            cut=self._view.cut or surplus > 0,
        )


def _rank(run: Summary) -> tuple[bool, float]:
    """Live ones first, each group newest first."""
    return not run.status.live, -(run.created or 0.0)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _size(path: Path | None) -> int:
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return 0
