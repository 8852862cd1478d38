"""When each line of a rank's output was written: torchrun's files hold no times, so the supervisor notes their sizes.

`logs/times.jsonl` has a line [t, file, size] for each time that a file was found grown: what lies before byte `size`
was written by then, in seconds since the epoch. `file` is relative to the logs folder.
"""

import bisect
import contextlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from collie.events import RunFolder, open_regular
from collie.jobs._fields import time_of, whole_of
from collie.jobs._logs import RankLogs, log_mode

_FILE = "times.jsonl"
_KNOWN = 2 * 1024 * 1024  # bytes of the file's end that are read: weeks of a chatty run are not, to show a last line
_EVERY = 1.0  # seconds between two looks: how exact the times are


class LogClock:
    """Notes the sizes of logs as they grow; for the supervisor, which alone writes the file."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._sizes: dict[Path, int] = {}
        self._next = 0.0

    def look(self, ranks: Iterable[RankLogs], *, last: bool = False) -> None:
        """Write down what has grown, at most once a second; a disk that is full loses times and nothing else.

        last: whether nothing more will come, so that this look is not left out.
        """
        if time.monotonic() < self._next and not last:
            return
        self._next = time.monotonic() + _EVERY
        now, lines = round(time.time(), 3), []
        for path in (path for logs in ranks for path in (logs.stdout, logs.stderr)):
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                if size != self._sizes.get(path, 0):
                    self._sizes[path] = size
                    lines.append(json.dumps([now, str(path.relative_to(self._run.logs)), size]) + "\n")
        if lines:
            with contextlib.suppress(OSError):
                target = self._run.logs / _FILE
                with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
                    os.fchmod(file.fileno(), log_mode(self._run))
                    file.writelines(lines)


class LogTimes:
    """What a LogClock wrote, its last ten thousands of notes; what was there before these has the oldest time."""

    def __init__(self, run: RunFolder) -> None:
        self._logs = run.logs
        self._sizes: dict[str, list[int]] = defaultdict(list)
        self._times: dict[str, list[float]] = defaultdict(list)
        self._offset: int | None = None
        self.refresh()

    def refresh(self) -> None:
        """Take in what was noted since."""
        with contextlib.suppress(OSError), open_regular(self._logs / _FILE) as file:
            if self._offset is None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _KNOWN))
                self._offset = file.tell()
                self._offset += len(file.readline()) if self._offset else 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            t, name, size = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            return
        noted, size = time_of(t), whole_of(size)
        if noted is None or size is None or not isinstance(name, str):
            return
        sizes = self._sizes[name]
        if not sizes or size > sizes[-1]:
            sizes.append(size)
            self._times[name].append(noted)

    def at(self, path: Path, end: int) -> float | None:
        """By when the byte before `end` of a log was there, in seconds since the epoch; None where nobody noted it."""
        name = str(path.relative_to(self._logs))
        place = bisect.bisect_left(self._sizes.get(name, []), end)
        times = self._times.get(name, [])
        return times[place] if place < len(times) else None
