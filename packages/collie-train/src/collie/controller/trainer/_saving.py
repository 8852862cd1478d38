"""What a Trainer writes and reads: models, adapters, and checkpoints that training resumes from."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collie.adapters import load_peft, save_peft
from collie.controller.trainer._checkpoint import Checkpoints, Position, Run
from collie.controller.trainer._record import Recorder, StepCounter
from collie.controller.trainer._weights import load_model, save_model, size_of
from collie.events import Checkpoint
from collie.interfaces import CheckpointError
from collie.models.weights import is_url


class Saving:
    """The Trainer's methods of that name, as it documents them. All are collective.

    Args:
        run: the Trainer's parts.
        recorder: writes down what was saved.
        steps: counts finished steps.
        alert: the Trainer's.
    """

    def __init__(self, run: Run, recorder: Recorder, steps: StepCounter, alert: Callable[[str, str], None]) -> None:
        self._run, self._recorder, self._steps, self._alert = run, recorder, steps, alert
        self.checkpoints = Checkpoints(run, lambda event, step: recorder.write(event, step=step))

    def save_model(self, path: str, **arguments: Any) -> None:
        run, began = self._run, time.perf_counter()
        with self._recorder.phase("saving", self._steps):
            save_model(run.model, run.topology, path, run.tokenizer, **arguments)
        if run.topology.rank == 0:
            place, seconds = path if is_url(path) else str(Path(path).resolve()), time.perf_counter() - began
            saved = Checkpoint(path=place, seconds=seconds, bytes=size_of(path))
            self._recorder.write(saved, step=self._steps())
        run.callbacks.on_save_model(run.trainer)

    def load_model(self, path: str) -> None:
        load_model(self._run.model, self._run.topology, path)
        self._run.callbacks.on_load_model(self._run.trainer)

    def save_peft(self, path: str, adapter_name: str) -> None:
        save_peft(self._run.model, path, adapter_name)

    def load_peft(self, path: str, adapter_name: str) -> None:
        load_peft(self._run.model, self._run.config, path, adapter_name)

    @property
    def checkpoint_folder(self) -> str | None:
        """Where checkpoints go that are asked for from outside: see the Trainer's."""
        return next(iter(self._folders()), None)

    def save_as_asked(self) -> None:
        """Save a checkpoint for a signal or a request; where that fails, on every rank alike, training goes on."""
        folder = self.checkpoint_folder
        if folder is None:
            self._alert("checkpoint", "a checkpoint was asked for, and this run has no folder: none was saved.")
            return
        try:  # `train` returns when it is complete
            self._run.trainer.save_checkpoint(f"{folder}/step-{self._steps.finished:08d}", wait=False)
        except CheckpointError as error:
            self._alert("checkpoint", f"the checkpoint that was asked for was not saved: {error}")

    def resume(self, resume: str | Path) -> Position | None:
        """Bring everything to where a checkpoint was written; return None where "auto" finds none."""
        if str(resume) != "auto":
            return self.checkpoints.load(resume)
        found = self.checkpoints.load_newest(self._folders())
        return found[1] if found is not None else None

    def resume_as_asked(self, resume: str) -> Position:
        """The same for whoever asked from outside, who is told where there is nothing to go on from."""
        position = self.resume(resume)
        if position is None:
            folders = ", ".join(self._folders()) or "any folder"
            raise CheckpointError(
                f"This run was to go on from a checkpoint, and none is in {folders}: a model alone has no state of "
                "training. Begin anew with `collie-tui resume --anew`."
            )
        return position

    def _folders(self) -> list[str]:
        """Where checkpoints lie: the folders of callbacks that save them, and the run folder's own."""
        callbacks = self._run.callbacks.callbacks
        folders = [folder for one in callbacks if (folder := one.checkpoint_folder) is not None]
        return folders + ([str(self._recorder.path / "checkpoints")] if self._recorder.path is not None else [])
