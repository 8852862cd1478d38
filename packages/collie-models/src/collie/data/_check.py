"""Whether rows that nobody has prepared can be trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collie.data._dataset import CollieDatasetForTraining
from collie.data._ends import check_ends
from collie.data._formats import PROCESSED, Formats
from collie.data._rows import check_target, token_row
from collie.interfaces import DataError


def check_rows(rows: Sequence[Mapping[str, Any]] | CollieDatasetForTraining, limit: int | None = None) -> None:
    """Check that rows can be trained on as they are: input_ids, fields of one length, a target token.

    limit: how many rows to look at, from the first; None looks at all. The rows of a CollieDatasetForTraining were
        checked when it was made, and are not read again, but for the ends of turns of its conversations.
    Raises DataError naming the row, what it has, and the mend; also for no rows at all.
    """
    made = _innermost(rows)
    if isinstance(made, CollieDatasetForTraining):
        check_ends(made)
        if made is rows:
            return
    if len(rows) == 0:
        raise DataError("the dataset has no rows: nothing can be trained or evaluated on it.")
    formats = Formats()
    for index in range(len(rows) if limit is None else min(limit, len(rows))):
        row = rows[index]
        if formats.of(row, index).name != PROCESSED:
            raise DataError(
                f"row {index} has the keys {sorted(row)} and no input_ids: make the rows tokens first, "
                f"with CollieDatasetForTraining(rows, tokenizer)."
            )
        check_target(token_row(row, index), index)


def _innermost(rows: Any) -> Any:
    """The dataset that others are made around: torch's Subset and packed rows call what they hold `dataset`."""
    while hasattr(rows, "dataset"):
        rows = rows.dataset
    return rows
