"""A supervisor for a job that runs without one: its own was killed, or it was started by other means."""

import os
import time

import psutil

from collie.events import RunFolder
from collie.interfaces import ConfigError
from collie.jobs._children import Found
from collie.jobs._leave import leave_supervisor
from collie.jobs._lock import claimed
from collie.jobs._peek import Peeker
from collie.jobs._process import Identity, same_process_alive
from collie.jobs._state import State
from collie.jobs._status import status


def adopt(run: RunFolder) -> None:
    """Leave a supervisor behind that looks after a run whose processes live on this host.

    It stops them, tells stalls and alerts, and records their end. How torchrun exits is told to its parent alone, so
    that the ranks' goodbyes say how the job ended.

    Raises:
        ConfigError: the run has a supervisor, has ended, or none of its processes lives here; it is somebody else's.
        LaunchError: the supervisor did not start; the run is as it was.
    """
    with claimed(run):
        _adopt(run)


def _adopt(run: RunFolder) -> None:
    now = status(run, Peeker().ranks(run))
    if now.managed and now.live:
        raise ConfigError(f"{run.id} has a supervisor: it is {now.state}.")
    if not now.live and now.state is not State.LOST:
        raise ConfigError(f"{run.id} has ended: it is {now.state}.")
    if not found_processes(run).left():
        raise ConfigError(f"{run.id} has no process on this host that could be adopted.")
    job, state = run.read_job() or {}, run.read_state() or {}
    adopted = job.get("adopted", not job.get("managed", False))  # by whom else it was started is not known again
    try:
        run.write_job({**job, "managed": True, "adopted": adopted, "supervisor": None})
        run.write_state({**state, **_fresh_state()})
        leave_supervisor(run, os.environ, adopt=True)
    except BaseException:
        run.write_job(job)
        run.write_state(state)
        raise


def _fresh_state() -> dict[str, object]:
    now = time.time()
    return {"state": State.RUNNING, "t": now, "heartbeat": now, "message": "being adopted"}


def found_processes(run: RunFolder) -> Found:
    """The processes of a run that live on this host: torchrun (a rank's parent, or told by a supervisor) and ranks."""
    workers = [
        Identity.of(rank.pid)
        for rank in Peeker().ranks(run)
        if rank.pid is not None
        and rank.process_start is not None
        and rank.host == Identity.of().host
        and same_process_alive(rank.pid, rank.process_start)
    ]
    torchrun = Identity.from_dict((run.read_state() or {}).get("torchrun"))
    if torchrun is None or not torchrun.is_alive():
        torchrun = next(filter(None, map(_parent, workers)), None)
    return Found(torchrun, workers)


def _parent(worker: Identity) -> Identity | None:
    """The torchrun above a rank; None where something else started it."""
    try:
        parent = psutil.Process(worker.pid).parent()
        command = " ".join(parent.cmdline()) if parent is not None else ""
        is_torchrun = "torch.distributed.run" in command or "torchrun" in command
        return Identity.of(parent.pid) if parent is not None and is_torchrun else None
    except (psutil.Error, OSError):
        return None
