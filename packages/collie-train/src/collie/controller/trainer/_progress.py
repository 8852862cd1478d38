"""A progress bar on rank 0: one line a training, with the loss of the last step."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """Shows epoch, step, loss and the time that is left. On other ranks, or without steps, it shows nothing."""

    def __init__(self, total: int, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not shown or total == 0,
        )
        self._task = self._progress.add_task("training", total=total, loss="–")

    def __enter__(self) -> "TrainingProgress":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def advance(self, epoch: int, step: int, loss: float) -> None:
        """Show that `step` steps are done."""
        self._progress.update(self._task, completed=step, description=f"epoch {epoch + 1}", loss=f"{loss:.4f}")
