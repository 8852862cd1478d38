"""Finds the first thing that went wrong in a run: which rank, what, and its last words.

torchrun's exit code is 1 for a failure and for a stop alike, and when one rank fails the others get SIGTERM or lose
their connection and fail too. So the rank is looked for in the order of trust: a rank that a signal killed (as torchrun
saw it), the earliest recorded exception (error.json or the rank's goodbye), and then the rank that torchrun blames, but
for one whose exception only says that another rank is gone.
"""

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collie.events import RunFolder
from collie.jobs._fields import plain
from collie.jobs._logs import TORCHRUN_LOG, LogTail, RankLogs, last_lines, rank_logs
from collie.jobs._process import signal_name
from collie.jobs._rank import RankView
from collie.jobs._status import Failure

_TAIL = 20
_REPORT = re.compile(r"^\s*rank\s*:\s*(\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*:\s*(-?\d+)", re.MULTILINE)
_BLAMED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
_PREFIX = re.compile(r"^\[rank\d+\]: ?")
# What the ranks say that were left behind by the one that failed first.
_SYMPTOM = re.compile(
    r"onnection (closed|reset|refused|was aborted)|Broken pipe|DistBackendError|DistNetworkError|remote worker|NCCL"
)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Failure|Fault)?(?:: .*)?")


@dataclass(frozen=True, slots=True)
class _Blame:
    rank: int
    exit_code: int | None = None
    message: str = ""
    t: float = 0.0


def first_failure(run: RunFolder, ranks: Sequence[RankView], exit_code: int | None) -> Failure:
    """The root cause of a run that ended with torchrun's `exit_code`."""
    logs = {entry.rank: entry for entry in rank_logs(run)}
    torchrun_log = Path(run.logs) / TORCHRUN_LOG
    seen = _torchrun_report(torchrun_log)
    told = sorted([*_error_files(logs.values()), *_goodbyes(ranks)], key=lambda blame: blame.t)
    killed = [blame for blame in seen if blame.exit_code is not None and _is_a_kill(blame.exit_code)]
    if killed or told:
        rank = [*killed, *told][0].rank
    else:
        tails = {rank: _last_words(logs[rank]) for rank in [*(blame.rank for blame in seen), *logs] if rank in logs}
        blamed = [blame.rank for blame in seen] or [rank for rank, tail in tails.items() if _exception(tail)]
        if not blamed:
            return _torchrun_itself(torchrun_log, exit_code)
        # The first of equals: torchrun's order, its root cause in front.
        rank = min(blamed, key=lambda rank: bool(_SYMPTOM.search(_exception(tails.get(rank, [])))))
    code = next((blame.exit_code for blame in seen if blame.rank == rank), None)
    tail = _last_words(logs[rank]) if rank in logs else []
    told_by_rank = "" if code is not None and _is_a_kill(code) else _told(told, rank)
    return Failure(
        rank=rank,
        message=told_by_rank or _in_words(code, tail),
        exit_code=code,
        step=next((view.step for view in ranks if view.rank == rank), None),
        tail=tuple(tail),
    )


def _last_words(logs: RankLogs) -> list[str]:
    """The last lines of a rank's stderr, without the "[rank1]: " that torch puts before each line of a traceback."""
    return [_PREFIX.sub("", line) for line in last_lines(logs.stderr, _TAIL)]


def _told(told: Sequence[_Blame], rank: int) -> str:
    return next((blame.message for blame in told if blame.rank == rank and blame.message), "")


def _is_a_kill(exit_code: int) -> bool:
    """Whether a signal ended the process that is not the TERM which torchrun sends to the others."""
    return exit_code < 0 and exit_code != -signal.SIGTERM


def _torchrun_report(path: Path) -> list[_Blame]:
    """The failed ranks as torchrun lists them, its root cause first."""
    text = "\n".join(LogTail(path, start=256 * 1024).read())
    _, marker, root = text.rpartition("Root Cause (first observed failure):")
    failed = [_Blame(int(rank), int(code)) for rank, code in _REPORT.findall(text) if int(code) != -signal.SIGTERM]
    if marker:
        first = [_Blame(int(rank), int(code)) for rank, code in _REPORT.findall(root)]
        return first + [blame for blame in failed if blame not in first]
    return failed or [_Blame(int(rank), int(code)) for code, rank in _BLAMED.findall(text)]


def _error_files(logs: Any) -> list[_Blame]:
    """What torch's @record wrote: {"message": text, or {"message": text, "extraInfo": {"timestamp": seconds}}}."""
    found = []
    for entry in logs:
        assert isinstance(entry, RankLogs)
        try:
            message = json.loads(entry.error.read_text(encoding="utf-8", errors="replace"))["message"]
            written = entry.error.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(message, dict):
            extra = message.get("extraInfo")
            stamp = extra.get("timestamp") if isinstance(extra, dict) else None
            written = float(str(stamp)) if str(stamp).replace(".", "", 1).isdecimal() else written
            message = message.get("message", "")
        found.append(_Blame(entry.rank, None, _first_line(plain(str(message), newlines=True)), written))
    return found


def _goodbyes(ranks: Sequence[RankView]) -> list[_Blame]:
    return [
        _Blame(rank.rank, None, _first_line(rank.message), rank.t or 0.0) for rank in ranks if rank.outcome == "failed"
    ]


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _in_words(exit_code: int | None, tail: Sequence[str]) -> str:
    """Say how a rank ended from its exit code and its last lines."""
    if exit_code is not None and exit_code < 0:
        name = signal_name(-exit_code)
        if name == "SIGKILL":
            return "killed by SIGKILL, as the kernel does to the largest process when host memory runs out"
        return f"ended by {name}"
    exception = _exception(tail)
    if exception:
        return exception
    status = "it ended without a reason" if exit_code is None else f"exit status {exit_code}"
    return f"{status}: {tail[-1].strip()}" if tail else status


def _exception(lines: Sequence[str]) -> str:
    """The last line of the last traceback in `lines`, "" without one."""
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not starts:
        return ""
    for line in lines[starts[-1] + 1 :]:
        if not line.startswith(" ") and _EXCEPTION.fullmatch(line.strip()):
            return line.strip()
    return ""


def _torchrun_itself(path: Path, exit_code: int | None) -> Failure:
    """No rank is to blame: torchrun could not start them, or was ended from outside."""
    tail = last_lines(path, _TAIL)
    if exit_code is not None and exit_code < 0:
        return Failure(None, f"ended by {signal_name(-exit_code)}", exit_code, tail=tuple(tail))
    return Failure(None, _in_words(exit_code, tail), exit_code, tail=tuple(tail))
