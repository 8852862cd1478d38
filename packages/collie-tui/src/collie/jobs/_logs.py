"""The ranks' output files: where torchrun puts them, and reading them from the end or from where we were."""

import contextlib
import stat
from dataclasses import dataclass
from pathlib import Path

from collie.events import RunFolder, open_regular
from collie.jobs._fields import plain

_BLOCK = 64 * 1024
LONGEST = 256 * 1024
"""Bytes of a line that are kept, the last ones: what comes after the last carriage return is what it shows."""

TORCHRUN_LOG = "torchrun.log"
"""What torchrun itself prints, in a run's logs folder."""
SUPERVISOR_LOG = "supervisor.log"
"""What the supervisor prints, in a run's logs folder; empty unless something went wrong."""

EARLIER = "earlier-"
"""How the names of logs begin that are of a time before the run was resumed."""
NOTIFY_LOG = "notify.log"
"""What the user's own command prints that is told how the job fares."""


@dataclass(frozen=True, slots=True)
class RankLogs:
    """The files of one rank in one attempt; a file may not exist yet.

    Attributes:
        rank: local rank, which on one node is the rank.
        attempt: number of restarts before it.
    """

    rank: int
    attempt: int
    folder: Path

    @property
    def stdout(self) -> Path:
        """What the rank wrote to standard output."""
        return self.folder / "stdout.log"

    @property
    def stderr(self) -> Path:
        """What the rank wrote to standard error."""
        return self.folder / "stderr.log"

    @property
    def error(self) -> Path:
        """The exception that ended a rank whose script uses torch's @record."""
        return self.folder / "error.json"


def rank_logs(run: RunFolder) -> list[RankLogs]:
    """The ranks' logs of the newest attempt, by rank; torchrun lays them as <id>_<random>/attempt_<n>/<local rank>/.

    Of a run that was resumed they are those of the last time.
    """
    ranks: list[RankLogs] = []
    with contextlib.suppress(OSError):  # gone since, or not ours to read
        attempts = [
            folder
            for folder in Path(run.logs).glob("*/attempt_*")
            if folder.is_dir() and not folder.parent.name.startswith(EARLIER)
        ]
        newest = max(attempts, key=lambda folder: (folder.parent.stat().st_ctime, _number(folder.name)), default=None)
        if newest is not None:
            ranks = [
                RankLogs(rank, _number(newest.name), folder)
                for folder in newest.iterdir()
                if (rank := _number(folder.name)) >= 0
            ]
    return sorted(ranks, key=lambda logs: logs.rank)


def _number(name: str) -> int:
    """7 for attempt_7 and for 7."""
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) < 10 else -1


def at_rest(text: str) -> str:
    """A line as it looks at rest: after the last carriage return, without escape sequences and control characters."""
    return plain(text.rstrip("\r").rpartition("\r")[2]).expandtabs(8)


def log_mode(run: RunFolder) -> int:
    """The mode of a file in the run's logs folder: 0640 where the folder is group-readable, 0600 otherwise."""
    return 0o640 if Path(run.logs).stat().st_mode & 0o040 else 0o600


def open_to_group(run: RunFolder) -> None:
    """Let the group read what torchrun wrote, if it may read the run: torchrun makes its folder for the user alone."""
    if log_mode(run) == 0o600:
        return
    for path in Path(run.logs).rglob("*"):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and not mode & 0o040:
            path.chmod(stat.S_IMODE(mode) | (0o050 if stat.S_ISDIR(mode) else 0o040))


def last_lines(path: Path, count: int) -> list[str]:
    """Up to `count` last lines that are not blank, reading no more than a block from the end; none without a file."""
    tail = LogTail(path, start=_BLOCK)
    lines = [line for line in tail.read() if line.strip()]
    if tail.partial.strip():
        lines.append(tail.partial)
    return lines[-count:]


class LogTail:
    """Reads a growing text file a piece at a time.

    Args:
        path: the file; it may come to be later.
        start: how many bytes before the end of the file the first read begins, None to begin with its first line.
        limit: the most bytes taken in by one `read`.
    """

    def __init__(self, path: Path, start: int | None = None, limit: int = 4 * 1024 * 1024) -> None:
        self.path = path
        self.partial = ""
        """The last line, as far as it is written (a progress bar, a question)."""
        self.lines_read = 0
        self._limit = limit
        self._start = start
        self._offset: int | None = None
        self._rest = b""

    def read(self) -> list[str]:
        """The whole lines written since the last call, without their line ends."""
        try:
            with open_regular(self.path) as file:
                size = file.seek(0, 2)
                cut = self._place(size)
                assert self._offset is not None
                file.seek(self._offset)
                data = file.read(self._limit)
        except OSError:
            return []
        self._offset += len(data)
        pieces = (self._rest + data).split(b"\n")
        # A progress bar rewrites its line for hours: only what stands after the last carriage return is kept.
        self._rest = b"\r".join(pieces.pop().rsplit(b"\r", 2)[-2:])[-LONGEST:]
        self.partial = at_rest(self._rest.decode("utf-8", "replace"))
        lines = [at_rest(piece[-LONGEST:].decode("utf-8", "replace")) for piece in pieces[1 if cut and pieces else 0 :]]
        self.lines_read += len(lines)
        return lines

    def _place(self, size: int) -> bool:
        """Set the offset for the first read, or for a file that was cut; True when it falls into a line."""
        if self._offset is not None and size >= self._offset:
            return False
        first = self._offset is None
        self._rest = b""
        self._offset = max(0, size - self._start) if first and self._start is not None else 0
        return self._offset > 0
