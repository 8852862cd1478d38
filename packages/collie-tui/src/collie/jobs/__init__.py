"""Jobs that outlive the terminal they were started from: a supervisor process for each. No textual, no torch."""

from collie.jobs._adopt import adopt
from collie.jobs._answers import Asked, ask
from collie.jobs._control import asked_to_stop, find, ls, stop, wait
from collie.jobs._format import (
    NOTHING,
    format_age,
    format_ago,
    format_bytes,
    format_count,
    format_duration,
    format_number,
    format_progress,
)
from collie.jobs._launch import gpu_count, start
from collie.jobs._leave import LaunchError
from collie.jobs._logs import LogTail, RankLogs, rank_logs
from collie.jobs._order import Means
from collie.jobs._peek import Peeker
from collie.jobs._rank import Answer, Decoded, Evaluation, RankView, Warned
from collie.jobs._reader import RunReader, RunView
from collie.jobs._resume import last_checkpoint, resume
from collie.jobs._series import Curve, Point, Series
from collie.jobs._state import State
from collie.jobs._status import Failure, Status, status
from collie.jobs._summary import Summary, display_name, summarise, summary, unreadable

__all__ = [
    "NOTHING",
    "Answer",
    "Asked",
    "Curve",
    "Decoded",
    "Evaluation",
    "Failure",
    "LaunchError",
    "LogTail",
    "Means",
    "Peeker",
    "Point",
    "RankLogs",
    "RankView",
    "RunReader",
    "RunView",
    "Series",
    "State",
    "Status",
    "Summary",
    "Warned",
    "adopt",
    "ask",
    "asked_to_stop",
    "display_name",
    "find",
    "format_age",
    "format_ago",
    "format_bytes",
    "format_count",
    "format_duration",
    "format_number",
    "format_progress",
    "gpu_count",
    "last_checkpoint",
    "ls",
    "rank_logs",
    "resume",
    "start",
    "status",
    "stop",
    "summarise",
    "summary",
    "unreadable",
    "wait",
]
