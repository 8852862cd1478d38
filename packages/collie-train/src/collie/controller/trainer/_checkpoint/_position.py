"""Whether a checkpoint's position is one of a run's: in rows, since another batch size counts other steps."""

import math
import warnings
from typing import Any

from collie.controller.trainer._checkpoint._run import Position, Run
from collie.interfaces import CheckpointError


def position_in(run: Run, position: Position, saved: dict[str, Any] | None) -> Position:
    """Return the same place among the rows of `run`'s data.

    Args:
        run: with or without data.
        position: as the checkpoint has it.
        saved: rows of an epoch, rows of a step, the seed of their order and, in newer checkpoints, its name, when the
            checkpoint was written.

    Raises:
        CheckpointError: the epoch that was begun has other rows or another order here, or no step begins at the row.
    """
    now = run.data()
    if saved is None or now is None:
        return position
    begun = position.step > 0
    for what, name in (("rows", "train_dataset"), ("seed", "config.seed"), ("order", "train_dataset")):
        if begun and saved.get(what, now[what]) != now[what]:
            raise CheckpointError(
                f"the checkpoint stands in an epoch that was begun with {what}={saved[what]!r}, and {name} gives "
                f"{what}={now[what]!r} here: its rows would come in another order. Resume with the same, or take the "
                f"weights alone with load_model."
            )
    if saved["rows_per_step"] == now["rows_per_step"]:
        return position
    return _in_other_steps(position, now["rows"] if begun else 0, saved["rows_per_step"], now["rows_per_step"])


def _in_other_steps(position: Position, rows: int, before: int, now: int) -> Position:
    """Return the place where steps of `now` rows follow those of `before`, in an epoch of `rows`."""
    seen = min(position.step * before, rows)
    at_end = seen == rows
    if seen % now and not at_end:
        raise CheckpointError(
            f"the checkpoint has seen {seen} rows of its epoch in steps of {before} (dp_size × train_micro_batch_size "
            f"× gradient_accumulation_steps), and no step of {now} rows begins there. Resume with {before} rows a step."
        )
    warnings.warn(
        f"a step has {now} rows here and had {before} when the checkpoint was written (dp_size × "
        f"train_micro_batch_size × gradient_accumulation_steps): what follows differs from the run that it continues.",
        stacklevel=2,
    )
    step = math.ceil(rows / now) if at_end else seen // now
    return Position(position.finished, position.epoch, step, position.first_epoch)
