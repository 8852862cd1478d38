"""Saving a run and resuming it: what the Trainer's save_checkpoint, load_checkpoint and train(resume=…) do."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from collie.controller.trainer._checkpoint._folder import Folder, newest_first
from collie.controller.trainer._checkpoint._manifest import Manifest, check_contents, read_manifest
from collie.controller.trainer._checkpoint._remote import RemoteCheckpoint, newest_remote
from collie.controller.trainer._checkpoint._restore import restore
from collie.controller.trainer._checkpoint._run import Position, Run
from collie.controller.trainer._checkpoint._snapshot import take_snapshot
from collie.controller.trainer._checkpoint._writer import Job, Writer
from collie.events import Alert, Checkpoint, Event
from collie.interfaces import CheckpointError
from collie.models.weights import Target, fetched, is_url
from collie.parallel import together

_GRACE = 60.0  # seconds for what is being written when a training has failed
_logger = logging.getLogger(__name__)


class DamagedError(CheckpointError):
    """A checkpoint that is not what was written, or not all of it."""


class Checkpoints:
    """The checkpoints of one run. Its methods are collective: every rank calls them at the same step.

    Args:
        run: what is saved and resumed.
        tell: writes an event of a step; it may be called from any thread.
    """

    def __init__(self, run: Run, tell: Callable[[Event, int | None], None]) -> None:
        self._run = run
        self._tell = tell
        self._writer = Writer(run.topology, self._alert)
        self._count = 0

    def save(
        self, path: str | Path, position: Position, *, wait: bool, then: Callable[[Path | str], None] | None = None
    ) -> None:
        """Copy the run's state to memory and write it behind the training. One before this is waited for.

        Args:
            path: of the checkpoint's folder; one that is there already is replaced when this one is complete.
            position: where the run stands.
            wait: return when it is on the disk.
            then: called on rank 0, in the writing thread, when the checkpoint is complete.

        Raises:
            CheckpointError: with `wait`: it could not be written; on every rank. Without, that ends in an alert. A
                state that cannot be kept in a checkpoint is always raised.
        """
        self._writer.wait()
        self._count += 1
        folder, topology = target(path), self._run.topology
        failing = f"The checkpoint {folder.path} could not be written"
        try:
            stage = together(topology, failing, lambda: self._prepare(folder))[0]
        except CheckpointError as error:
            if wait:
                raise
            if topology.rank == 0:
                self._alert(folder.path, error)
            return
        assert stage is not None
        try:
            snapshot = take_snapshot(self._run, position)
        except BaseException:
            if topology.rank == 0:
                folder.discard(stage)
            raise

        def done(manifest: Manifest, seconds: float) -> None:
            self._tell(Checkpoint(path=str(folder.path), seconds=seconds, bytes=manifest.bytes), manifest.step)
            if then is not None:
                then(folder.path)

        self._writer.start(
            Job(folder, stage, self._count, snapshot.files, snapshot.complete, done), tell_failure=not wait
        )
        if wait:
            together(topology, failing, self._finish)

    def settle(self) -> None:
        """Wait until the checkpoint that is being written is complete; it then is on every rank."""
        if self._writer.writing:
            self._writer.wait()
            self._run.topology.barrier()

    def settle_alone(self) -> None:
        """Wait for what this rank is writing, for a while: others may have failed, and never answer."""
        self._writer.wait(_GRACE)

    def load(self, path: str | Path) -> Position:
        """Bring the run to where a checkpoint was written, in any layout, and return its position.

        Raises:
            CheckpointError: it is not whole, or does not fit this run; on every rank.
        """
        self.settle()
        with self._fetched(path) as folder:
            return restore(self._run, folder, self._verified(folder))

    def load_newest(self, folders: Iterable[str | Path]) -> tuple[str, Position] | None:
        """Do `load` with the newest whole checkpoint in these folders; return None where there is none.

        One that is damaged is passed over with a warning.
        """
        self.settle()
        topology = self._run.topology
        listed = together(
            topology, "The checkpoints could not be listed", lambda: _listed(folders) if topology.rank == 0 else []
        )[0]
        for path in listed:
            try:
                with self._fetched(path) as folder:
                    manifest = self._verified(folder)
                    return path, restore(self._run, folder, manifest)
            except DamagedError as error:
                if topology.rank == 0:
                    warnings.warn(f"{error} An older one is looked for.", stacklevel=2)
        return None

    @contextmanager
    def _fetched(self, path: str | Path) -> Iterator[Path]:
        """Within it the checkpoint is in a local folder: where it lies, or downloaded by one rank of each node."""
        if not is_url(path):
            yield Folder(Path(path)).fetch()
            return
        with fetched(RemoteCheckpoint(str(path)), self._run.topology) as folder:
            yield folder

    def _prepare(self, folder: Target) -> str | None:
        """Make the folder to write into. The tokenizer is written at once: it is not to be used by two threads."""
        if self._run.topology.rank != 0:
            return None
        stage = folder.prepare()
        if self._run.tokenizer is not None:
            self._run.tokenizer.save_pretrained(folder.local(stage))
        return stage

    def _finish(self) -> None:
        error = self._writer.wait()
        if error is not None:
            raise error

    def _verified(self, folder: Path) -> Manifest:
        """Return the manifest of a checkpoint whose files were all read once, each by one rank. Collective.

        Raises:
            DamagedError: it is not what was written; on every rank.
        """
        topology = self._run.topology

        def verify() -> Manifest:
            manifest = read_manifest(folder)
            check_contents(folder, manifest, topology.rank, topology.world_size)
            return manifest

        try:
            return together(topology, f"{folder} could not be read", verify)[0]
        except CheckpointError as error:
            raise DamagedError(str(error)) from error

    def _alert(self, path: Path | str, error: Exception) -> None:
        message = f"the checkpoint {path} was not written, and training goes on without it: {error}"
        _logger.warning(message)
        self._tell(Alert(level="error", code="checkpoint", message=message), None)


def target(path: str | Path) -> Target:
    """Return the place of a checkpoint: on a disk, or by a URL."""
    return RemoteCheckpoint(str(path)) if is_url(path) else Folder(Path(path))


def _listed(folders: Iterable[str | Path]) -> list[str]:
    """Return the checkpoints that lie directly in these folders, the last written one first."""
    found = [one for folder in folders if is_url(folder) for one in newest_remote(str(folder))]
    found += [(str(path), m) for path, m in newest_first(Path(one) for one in folders if not is_url(one))]
    return [path for path, _ in sorted(found, key=lambda one: (one[1].written, one[1].step), reverse=True)]
