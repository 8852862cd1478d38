"""A look at the ends of a run's event files: enough for a line in a list, however long the run."""

import re
from collections.abc import Iterable
from pathlib import Path

from collie.events import RunFolder, decode, open_regular
from collie.jobs._fields import plain_record, whole_of
from collie.jobs._rank import RankState, RankView

_FILE = re.compile(r"rank-(\d+)\.a(\d+)\.jsonl")
_FIRST_BLOCK = 16 * 1024
_LAST_BLOCK = 256 * 1024
_HEAD = 4 * 1024


def rank_and_attempt(path: Path) -> tuple[int, int]:
    """(3, 1) for rank-00003.a1.jsonl; (0, 0) for a file of another name."""
    match = _FILE.fullmatch(path.name)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def newest_attempt(run: RunFolder, seen: Iterable[int]) -> int:
    """The attempt that a run is at: of those that ranks have spoken in (`seen`), or one that has only been begun."""
    return max([whole_of((run.read_job() or {}).get("attempt")) or 0, *seen])


class Peeker:
    """Looks at event files' ends and remembers each look as long as its file has the same size."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, RankView]] = {}

    def ranks(self, run: RunFolder) -> tuple[RankView, ...]:
        """One view a rank, of the run's newest attempt, by rank."""
        files = run.event_files()
        newest = newest_attempt(run, (rank_and_attempt(path)[1] for path in files))
        views = (self._look(path) for path in files if rank_and_attempt(path)[1] == newest)
        return tuple(view for view in views if view is not None)

    def _look(self, path: Path) -> RankView | None:
        try:
            size = path.stat().st_size
            seen = self._seen.get(path)
            if seen is None or seen[0] != size:
                seen = (size, _read_ends(path, size))
                self._seen[path] = seen
        except OSError:
            return None
        return seen[1]


def _read_ends(path: Path, size: int) -> RankView:
    """The greeting at the head, then the lines of a block at the end that is grown until a step is in it."""
    with open_regular(path) as file:
        head = file.readline(_HEAD)
        size = max(size, len(head))  # it may have been written after its size was asked for
        block = _FIRST_BLOCK
        while True:
            start = max(len(head), size - block)
            file.seek(start)
            data = file.read(size - start)
            state = RankState(*rank_and_attempt(path))
            _add(state, head)
            lines = data.split(b"\n")
            for line in lines[0 if start == len(head) else 1 :]:
                _add(state, line)
            if state.steps or start == len(head) or block >= _LAST_BLOCK:
                return state.view()
            block *= 4


def _add(state: RankState, line: bytes) -> None:
    if not line.strip():
        return
    try:
        record = decode(line)
    except ValueError:
        return
    if record is not None and (record := plain_record(record)) is not None:
        state.add(record)
