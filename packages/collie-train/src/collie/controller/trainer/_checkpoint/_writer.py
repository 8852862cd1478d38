"""Writing behind the training: what was copied to memory goes to the disk in a thread, one checkpoint at a time.

Each rank writes its own files. The others tell rank 0 by a note what they wrote, or what stopped them; it adds what
there is once, writes the manifest and moves the folder into place. No collective is used, since the training uses
them at the same time.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from collie.controller.trainer._checkpoint._files import Content, Written, write_tensors
from collie.controller.trainer._checkpoint._manifest import Manifest
from collie.interfaces import CheckpointError
from collie.models.weights import Target
from collie.parallel import Topology, await_notes, leave_note

_PATIENCE = 1800.0  # seconds that rank 0 waits for the others


@dataclass
class Job:
    """What this rank writes of a checkpoint.

    target: where it is to lie.
    stage: where it is written: what `Target.prepare` gave rank 0.
    number: of this checkpoint among those of the run, the same on every rank.
    files: by their paths in the folder, in memory; they are let go of one by one.
    complete: called on rank 0 with its local folder and all that was written; adds what there is once.
    done: called on rank 0 in the thread when the checkpoint lies in its place.
    """

    target: Target
    stage: str
    number: int
    files: dict[str, dict[str, Content]]
    complete: Callable[[Path, dict[str, Written]], Manifest]
    done: Callable[[Manifest, float], None] | None = None
    began: float = field(default_factory=time.perf_counter)


class Writer:
    """The thread that writes this rank's part of a checkpoint.

    failed: called in the thread with what stopped the writing, on rank 0 alone.
    """

    def __init__(self, topology: Topology, failed: Callable[[Path | str, Exception], None]) -> None:
        self._topology = topology
        self._failed = failed
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def writing(self) -> bool:
        """Whether a checkpoint was begun that nobody has waited for."""
        return self._thread is not None

    def start(self, job: Job, *, tell_failure: bool) -> None:
        """Begin to write; the checkpoint before must have been waited for."""
        assert self._thread is None
        self._error = None
        # a daemon: a process that must end does not wait for other ranks that may be gone
        self._thread = threading.Thread(target=self._run, args=(job, tell_failure), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> Exception | None:
        """Wait until this rank's part (on rank 0: the whole) is written; return what stopped it."""
        if self._thread is None:
            return None
        self._thread.join(timeout)
        self._thread = None
        return self._error

    def _run(self, job: Job, tell_failure: bool) -> None:
        try:
            self._write(job)
        except Exception as error:  # the thread has nobody above it
            self._error = error
            if self._topology.rank == 0:
                job.target.discard(job.stage)
                if tell_failure:
                    self._failed(job.target.path, error)

    def _write(self, job: Job) -> None:
        written: dict[str, Written] = {}
        error: Exception | None = None
        try:
            written = _write_files(job)
        except Exception as caught:  # rank 0 must hear of it, whatever it is
            error = caught
        if self._topology.rank != 0:
            said = {"error": _words(error)} if error is not None else {k: asdict(v) for k, v in written.items()}
            job.target.leave()
            leave_note(_key(job, self._topology.rank), json.dumps(said))
            if error is not None:
                raise error
            return
        for note in await_notes([_key(job, rank) for rank in range(1, self._topology.world_size)], _PATIENCE):
            said = json.loads(note)
            if "error" in said:
                error = error or CheckpointError(said["error"])
            else:
                written |= {name: Written(**file) for name, file in said.items()}
        if error is not None:
            raise error
        manifest = job.complete(job.target.local(job.stage), written)
        job.target.commit(job.stage)
        if job.done is not None:
            job.done(manifest, time.perf_counter() - job.began)


def _write_files(job: Job) -> dict[str, Written]:
    local = job.target.local(job.stage)
    written: dict[str, Written] = {}
    while job.files:
        name = next(iter(job.files))
        path = local / name
        path.parent.mkdir(exist_ok=True)
        written[name] = write_tensors(path, job.files.pop(name))
        job.target.put(job.stage, [name])
    return written


def _key(job: Job, rank: int) -> str:
    return f"collie/checkpoint/{job.number}/{rank}"


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
