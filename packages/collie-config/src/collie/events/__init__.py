"""What a run writes down and what a dashboard reads: event kinds, files, and the run folder. Standard library only."""

from collie.events._files import open_regular
from collie.events._kinds import Alert, Bye, Checkpoint, Eval, Event, Hello, Log, Metric, Phase, Prompt, Sample, Step
from collie.events._reader import EventReader
from collie.events._record import VERSION, Record, decode, encode
from collie.events._run import (
    REQUESTS,
    RUN_DIR_VARIABLE,
    Request,
    RunFolder,
    asked_to_resume,
    current_attempt,
    current_run,
    list_runs,
    runs_root,
)
from collie.events._writer import EventWriter, NullWriter

__all__ = [
    "REQUESTS",
    "RUN_DIR_VARIABLE",
    "VERSION",
    "Alert",
    "Bye",
    "Checkpoint",
    "Eval",
    "Event",
    "EventReader",
    "EventWriter",
    "Hello",
    "Log",
    "Metric",
    "NullWriter",
    "Phase",
    "Prompt",
    "Record",
    "Request",
    "RunFolder",
    "Sample",
    "Step",
    "asked_to_resume",
    "current_attempt",
    "current_run",
    "decode",
    "encode",
    "list_runs",
    "open_regular",
    "runs_root",
]
