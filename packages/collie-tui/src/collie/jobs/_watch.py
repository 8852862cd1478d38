"""What a supervisor makes of a job's events: what it does now, whether it stands still, and what to be alarmed of."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable

from collie.events import VERSION, Alert, Checkpoint, Record, RunFolder, Step, encode
from collie.jobs._detectors import Finding, all_detectors
from collie.jobs._format import format_bytes, format_duration
from collie.jobs._logs import log_mode
from collie.jobs._reader import ALERTS, RunReader
from collie.jobs._state import State

_EVERY = 1.0  # seconds between two looks at the events
_DISK_EVERY = 30.0  # seconds between two looks at the disk
_LEAST_SILENCE = 60.0  # seconds without a word after which a run that makes steps may be called stalled
_LEAST_WORK = 900.0  # the same while it evaluates or saves
_PHASES = {"evaluating": State.EVALUATING, "saving": State.SAVING}


class Watch:
    """Reads a job's events as they come.

    Args:
        run: the run's folder.
        tell: what is called with each alert.
    """

    def __init__(self, run: RunFolder, tell: Callable[[Alert], None] = lambda alert: None) -> None:
        self._run, self._tell = run, tell
        self._reader = RunReader(run)
        self._detectors = all_detectors()
        self._began = time.time()
        self._heard = time.monotonic()
        self._next = self._next_disk = 0.0
        self._seq = 0
        self._phase = ""
        self._since_phase = time.monotonic()
        self._longest = {"evaluating": 0.0, "saving": 0.0}  # seconds
        self._pace: float | None = None
        self._attempt = -1
        self._checkpoint_bytes = 0
        self._disk_is_full = False

    def look(self) -> tuple[State, str] | None:
        """The state that the events speak of, with a sentence; None before the first event, or between two looks."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + _EVERY
        for record in self._reader.refresh():
            self._heard = time.monotonic()
            self._take(record)
        self._look_at_the_disk()
        ranks = self._reader.view().ranks
        if not ranks:
            return None
        lead = ranks[0]
        self._pace = lead.pace
        if lead.phase != self._phase:
            if self._phase in self._longest:
                taken = time.monotonic() - self._since_phase
                self._longest[self._phase] = max(self._longest[self._phase], taken)
            self._phase, self._since_phase = lead.phase, time.monotonic()
        if all(rank.outcome is not None for rank in ranks):
            return State.RUNNING, "the training has ended and the script goes on"
        silence = time.monotonic() - self._heard
        if lead.step is not None and silence > self._patience():
            doing = f" while {self._phase}" if self._phase in _PHASES else ""
            usual = "" if self._pace is None else f"; a step takes {format_duration(self._pace)}"
            return State.STALLED, f"no rank has written anything for {format_duration(silence)}{doing}{usual}"
        return _PHASES.get(self._phase, State.RUNNING), ""

    def _patience(self) -> float:
        """Seconds of silence that the run's own times explain."""
        if self._phase in self._longest:
            return max(_LEAST_WORK, 10 * self._longest[self._phase])
        return max(_LEAST_SILENCE, 10 * (self._pace or 0.0))

    def _take(self, record: Record) -> None:
        event = record.event
        if isinstance(event, Checkpoint) and event.bytes is not None:
            self._checkpoint_bytes = event.bytes
        if not isinstance(event, Step) or record.step is None:
            return
        if record.attempt > self._attempt:  # what was before says nothing about a training that began again
            self._attempt, self._detectors = record.attempt, all_detectors()
        if record.attempt < self._attempt:
            return
        for detector in self._detectors:
            found = detector.see(record.rank, record.step, event)
            if found is not None and record.t >= self._began - 2 * _EVERY:  # not what a long run did before we came
                self._alert(found)

    def _look_at_the_disk(self) -> None:
        if time.monotonic() < self._next_disk:
            return
        self._next_disk = time.monotonic() + _DISK_EVERY
        try:
            disk = shutil.disk_usage(self._run.path)
        except OSError:
            return
        needed = max(2 * self._checkpoint_bytes, disk.total // 50)
        full = disk.free < needed
        if full and not self._disk_is_full:
            step = max((rank.step or 0 for rank in self._reader.view().ranks), default=0)
            what = f"the disk of the run has {format_bytes(disk.free)} left of {format_bytes(disk.total)}"
            mend = "Make room, or keep fewer checkpoints: a checkpoint that does not fit is not saved."
            self._alert(Finding("disk", f"{what}. {mend}", 0, step - 1))
        self._disk_is_full = full

    def _alert(self, found: Finding) -> None:
        """Write an alert into the run and tell it; on a disk that is full it is only told."""
        alert = Alert("warning", found.code, found.message)
        record = Record(VERSION, self._seq, time.time(), found.rank, max(0, self._attempt), found.step, alert)
        self._seq += 1
        with contextlib.suppress(OSError):
            target = self._run.path / ALERTS
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
                os.fchmod(file.fileno(), log_mode(self._run))
                file.write(encode(record) + "\n")
        self._tell(alert)
