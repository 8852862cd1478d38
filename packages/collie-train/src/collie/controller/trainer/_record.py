"""What a run leaves on disk and what it is asked from there: the run folder, this rank's events, requests, signals.

Nothing here ever fails a training step: a run whose folder cannot be written trains without one, and says so.
"""

import contextlib
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from collie.controller.trainer._requests import ANSWERED, PROMPTS, Requests
from collie.controller.trainer._signals import Signals
from collie.events import (
    RUN_DIR_VARIABLE,
    Alert,
    Bye,
    Event,
    EventWriter,
    Hello,
    Log,
    NullWriter,
    Phase,
    Prompt,
    RunFolder,
    asked_to_resume,
    current_attempt,
)
from collie.interfaces import RunContext
from collie.parallel import Topology

_POLL_SECONDS = 0.5  # how often rank 0 looks for requests: the folder may lie on a network
_PACKAGES = ("torch", "transformers", "deepspeed", "collie-config", "collie-models", "collie-train")
_NO_PROMPTS = (
    "this run answers no prompts. Give its Trainer a tokenizer and install collie-eval, or give its Server a "
    "RunFolderProvider."
)
_logger = logging.getLogger(__name__)
_writers: dict[Path, EventWriter] = {}  # by run folder; this rank's file in it
_resumed: set[Path] = set()  # run folders of which a training has asked what to resume from


class Recorder:
    """This rank's place in the run folder."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._folder = _agree_on_folder(topology)
        self.events = _writer_of_this_process(self._folder, topology)
        self._signals = Signals()
        self._answered: set[str] = set()
        self._left: tuple[str, ...] = ()  # kinds of request that another answers
        self._next_poll = 0.0
        self._training = False

    @property
    def path(self) -> Path | None:
        """The run folder, or None where there is none."""
        return self._folder.path if self._folder is not None else None

    def context(self, step: "StepCounter") -> RunContext:
        """Return what monitors and evaluators of this run write with."""
        return RunContext(
            events=self.events,
            rank=self._topology.rank,
            world_size=self._topology.world_size,
            step=step,
            folder=str(self.path) if self.path is not None else None,
        )

    @contextlib.contextmanager
    def training(self, step: "StepCounter") -> Iterator[None]:
        """Watch one training: signals become requests; the end, however it comes, is written down."""
        with self._signals:
            self._training = True
            try:
                yield
            except BaseException as error:
                message = f"{type(error).__name__}: {error}"
                self.write(Alert(level="error", code=type(error).__name__, message=message), step=step())
                self.write(Bye(outcome="failed", message=message), step=step())
                raise
            finally:
                self._training = False

    @contextlib.contextmanager
    def phase(self, name: str, step: "StepCounter") -> Iterator[None]:
        """Say that training pauses, and for what ("evaluating", "saving"), and that it goes on."""
        told = self._training and self._topology.rank == 0
        if told:
            self.write(Phase(name), step=step())
        try:
            yield
        finally:
            if told:
                self.write(Phase("training"), step=step())

    def asked_to_resume(self) -> str | None:
        """Return what the supervisor was told that this run goes on from; for the process's first training alone."""
        if self._folder is None or self._folder.path in _resumed:
            return None
        _resumed.add(self._folder.path)
        return asked_to_resume()

    def leave_prompts(self, leave: bool) -> None:
        """Leave prompts in control/ to a server, which takes them out of it; else they are refused here."""
        self._left = PROMPTS if leave else ()

    def write(self, event: Event, *, step: int | None) -> None:
        self.events.write(event, step=step)

    def local_requests(self) -> Requests:
        """Return what this rank heard: its own signals, and on rank 0 the files in control/."""
        return self._signals.take() | self._poll()

    def _poll(self) -> Requests:
        asked = Requests()
        if self._folder is None or self._topology.rank != 0 or time.monotonic() < self._next_poll:
            return asked
        self._next_poll = time.monotonic() + _POLL_SECONDS
        with contextlib.suppress(OSError):
            for request in self._folder.pending():
                if request.id in self._answered or request.kind in self._left:
                    continue
                self._answered.add(request.id)
                if request.kind in ANSWERED:
                    asked |= Requests(**{request.kind: True})
                    self.write(Log(level="info", message=f"asked to {request.kind} (request {request.id})"), step=None)
                elif request.kind == "prompt":
                    self.write(Prompt(request.id, "", done=True, error=_NO_PROMPTS), step=None)
                    self.write(Alert(level="warning", code="request", message=f"a prompt: {_NO_PROMPTS}"), step=None)
                self._folder.resolve(request.id)
        return asked


class StepCounter:
    """Counts finished steps; calling it gives the index of the last one, -1 before the first."""

    def __init__(self) -> None:
        self.finished = 0

    def __call__(self) -> int:
        return self.finished - 1


def _writer_of_this_process(folder: RunFolder | None, topology: Topology) -> EventWriter | NullWriter:
    """Return the one writer of this rank's file, whose first line is hello: Trainers of one process share it."""
    if folder is None:
        return NullWriter()
    if folder.path not in _writers:
        writer = EventWriter(folder.events, topology.rank, current_attempt())
        writer.write(_hello(topology))
        _writers[folder.path] = writer
    return _writers[folder.path]


def _agree_on_folder(topology: Topology) -> RunFolder | None:
    """Return the run's folder: the supervisor's, else one that rank 0 makes and tells the others.

    One process is one run: a second Trainer writes where the first one did.
    """
    if _writers:
        return RunFolder(next(reversed(_writers)))
    given = os.environ.get(RUN_DIR_VARIABLE)
    path: str | None = given
    if given is None and topology.rank == 0:
        path = _make_folder(topology)
    if given is None and topology.world_size > 1:
        box = [path]
        dist.broadcast_object_list(box, src=0)
        path = box[0]
    return RunFolder(Path(path)) if path is not None else None


def _make_folder(topology: Topology) -> str | None:
    """Make the folder of a run that no supervisor started; it shows in the dashboard as unmanaged."""
    script = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else "run"
    try:
        folder = RunFolder.create(name=script or "run")
        folder.write_job(
            {
                "argv": list(sys.argv),
                "script": sys.argv[0] if sys.argv else "",
                "nproc": topology.world_size,
                "nodes": 1,
                "cwd": os.getcwd(),
                "created": time.time(),
                "managed": False,
                "pid": os.getpid(),
                "host": socket.gethostname(),
            }
        )
    except OSError as error:
        _logger.warning("this run is not recorded, its folder cannot be made: %s", error)
        return None
    return str(folder.path)


def _hello(topology: Topology) -> Hello:
    device = torch.cuda.get_device_name(topology.device) if topology.device.type == "cuda" else platform.machine()
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return Hello(
        host=socket.gethostname(),
        pid=os.getpid(),
        process_start=_process_start(),
        world_size=topology.world_size,
        dp=topology.dp_rank,
        tp=topology.tp_rank,
        pp=topology.pp_rank,
        dp_size=topology.dp_size,
        tp_size=topology.tp_size,
        pp_size=topology.pp_size,
        device=f"{topology.device} {device}",
        versions=versions,
    )


def _process_start() -> float | None:
    try:
        return psutil.Process().create_time()
    except psutil.Error:
        return None
