"""The last lines of several ranks' logs, in the order in which they were written, and what comes to them."""

import contextlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from collie.events import RunFolder, open_regular
from collie.jobs._log_times import LogTimes
from collie.jobs._logs import LONGEST, RankLogs, at_rest, rank_logs

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, ...] = ("stdout", "stderr")
_BLOCK = 64 * 1024
_MOST = 4 * 1024 * 1024  # bytes that are taken of a file at once


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a rank's output.

    t: seconds since the epoch by which it was there; None where nobody noted it.
    """

    t: float | None
    rank: int
    stream: Stream
    text: str


Keeps = Callable[[str], bool]


class MergedTail:
    """Reads the ends of logs: `last` once, then `fresh` as often as wanted, and `unfinished` when nothing more comes.

    Args:
        run: whose newest attempt.
        ranks: which of its ranks; None means all, those that are still to come too.
        streams: "stdout", "stderr" or both.
        keeps: which lines; None means all.
    """

    def __init__(
        self,
        run: RunFolder,
        ranks: Sequence[int] | None = None,
        streams: Sequence[Stream] = STREAMS,
        keeps: Keeps | None = None,
    ) -> None:
        self._run, self._ranks, self._streams, self._keeps = run, ranks, streams, keeps
        self._times = LogTimes(run)
        self._files: dict[Path, _File] = {}

    @property
    def found(self) -> bool:
        """Whether there is any log of these ranks."""
        return bool(self._files)

    def last(self, count: int, *, whole: bool = True) -> list[Line]:
        """The last `count` lines of all that are kept, oldest first; as far back in each file as that needs.

        whole: False takes a last line without an end for a line: nobody writes to it any more.
        """
        self._look()
        newest_first = [file.backwards(count, self._times, self._keeps, whole) for file in self._files.values()]
        merged = heapq.merge(*newest_first, key=_when, reverse=True)
        return [line for line, _ in zip(merged, range(count), strict=False)][::-1]

    def fresh(self) -> list[Line]:
        """The whole lines that were written since."""
        self._look()
        self._times.refresh()
        return self._kept(line for file in self._files.values() for line in file.forwards(self._times))

    def unfinished(self) -> list[Line]:
        """What stands behind the last whole line of each file."""
        return self._kept(line for file in self._files.values() for line in file.unfinished(self._times))

    def _kept(self, lines: Iterable[Line]) -> list[Line]:
        return sorted((line for line in lines if self._keeps is None or self._keeps(line.text)), key=_when)

    def _look(self) -> None:
        """Find files that are new: ranks start one after another."""
        for logs in rank_logs(self._run):
            if self._ranks is None or logs.rank in self._ranks:
                for stream in self._streams:
                    path = getattr(logs, stream)
                    if path not in self._files and path.is_file():
                        self._files[path] = _File(logs, stream, path)


def _when(line: Line) -> tuple[float, int]:
    """Lines that nobody noted the time of are the newest."""
    return (float("inf") if line.t is None else line.t, line.rank)


class _File:
    """One log, and how far it was read."""

    def __init__(self, logs: RankLogs, stream: Stream, path: Path) -> None:
        self.rank, self.stream, self.path = logs.rank, stream, path
        self._read = 0  # bytes
        self._rest = b""  # of them, those behind the last line's end

    def backwards(self, count: int, times: LogTimes, keeps: Keeps | None, whole: bool) -> Iterator[Line]:
        """Up to `count` lines from the end on, newest first; what comes after them is for `forwards`."""
        end = 0
        with contextlib.suppress(OSError):
            self._read = end = _end_of_lines(self.path)
            if not whole and (size := self.path.stat().st_size) > end:
                self._read, end = size, size + 1  # as if its end were there
        return itertools.islice(self._kept_backwards(end, times, keeps), count)

    def _kept_backwards(self, end: int, times: LogTimes, keeps: Keeps | None) -> Iterator[Line]:
        with contextlib.suppress(OSError):
            for piece, at in _lines_backwards(self.path, end):
                line = self._line(piece, times.at(self.path, at))
                if keeps is None or keeps(line.text):
                    yield line

    def forwards(self, times: LogTimes) -> list[Line]:
        """The whole lines after what was read; none only where there is none."""
        lines: list[Line] = []
        with contextlib.suppress(OSError), open_regular(self.path) as file:
            if file.seek(0, 2) < self._read:  # cut: begin again
                self._read, self._rest = 0, b""
            file.seek(self._read)
            while not lines and (data := file.read(_MOST)):
                end = self._read
                self._read += len(data)
                *pieces, rest = data.split(b"\n")
                for piece in pieces:
                    end += len(piece) + 1
                    lines.append(self._line(self._rest + piece, times.at(self.path, end)))
                    self._rest = b""
                self._rest = (self._rest + rest)[-LONGEST:]
        return lines

    def unfinished(self, times: LogTimes) -> list[Line]:
        """The beginning of a line after what was read, if there is one."""
        return [self._line(self._rest, times.at(self.path, self._read))] if self._rest else []

    def _line(self, piece: bytes, t: float | None) -> Line:
        return Line(t, self.rank, self.stream, at_rest(piece[-LONGEST:].decode("utf-8", "replace")))


def _end_of_lines(path: Path) -> int:
    """Where the last whole line of a file ends."""
    with open_regular(path) as file:
        position = file.seek(0, 2)
        while position > 0:
            start = max(0, position - _BLOCK)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            position = start
    return 0


def _lines_backwards(path: Path, end: int) -> Iterator[tuple[bytes, int]]:
    """The lines before byte `end`, the last first, each with where it ends; read in blocks, as many as are wanted.

    Of a line that is longer than LONGEST only the end is kept, so that its length costs time and no memory.
    """
    with open_regular(path) as file:
        position, rest, length = end - 1, b"", 0  # without the last line's end
        while end > 0:
            start = max(0, position - _BLOCK)
            file.seek(start)
            *pieces, last = file.read(position - start).split(b"\n")
            length += len(last)
            rest = rest if len(rest) >= LONGEST else (last + rest)[-LONGEST:]
            for piece in reversed(pieces):
                yield rest, end
                end -= length + 1
                rest, length = piece, len(piece)
            if start == 0:
                yield rest, end
                return
            position = start
