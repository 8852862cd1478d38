"""Rows of like length in one step, so that little of a batch is padding, and still another order every epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from collie.data._sampler import EpochSampler, seed_sequence
from collie.interfaces import DataError

_STEPS = 50  # of a mega-batch, as in transformers' LengthGroupedSampler


class LengthGroupedSampler(EpochSampler):
    """An epoch's order in which a step's rows are of like length, drawn from (seed, epoch), equal on every rank.

    The rows are shuffled, dealt to mega-batches of 50 steps, and sorted within each. The steps that they are then cut
    into come in a drawn order, so that lengths do not rise and fall with the training; but the step with the longest
    row of all comes first: what does not fit into memory shows at once. A last step that is not full stays last.

    Args:
        lengths: tokens of each row [rows].
        rows_per_step: rows of a step on all ranks.
        seed: of the order, with the epoch.
    """

    def __init__(self, lengths: Any, rows_per_step: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        super().__init__(len(self._lengths))
        self.rows_per_step = rows_per_step
        self.seed = seed

    def _draw(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng(seed_sequence(self.seed, epoch))
        order = random.permutation(self.length)
        mega_batch = _STEPS * self.rows_per_step
        # the longest row of all goes where a full step takes it, as one of the first mega-batch
        longest = int(np.argmax(self._lengths[order]))
        order[[0, longest]] = order[[longest, 0]]
        for start in range(0, self.length, mega_batch):
            part = order[start : start + mega_batch]
            order[start : start + mega_batch] = part[np.argsort(-self._lengths[part], kind="stable")]
        full = self.length // self.rows_per_step
        if full == 0:
            return order
        steps = order[: full * self.rows_per_step].reshape(full, self.rows_per_step)
        steps = steps[np.concatenate([[0], 1 + random.permutation(full - 1)])]
        return np.concatenate([steps.ravel(), order[full * self.rows_per_step :]])


def lengths_of(dataset: Any) -> np.ndarray:
    """Tokens of each row [rows]: the dataset's own `lengths`, else by reading every row once.

    Raises DataError: a row without input_ids.
    """
    known = getattr(dataset, "lengths", None)
    if known is not None:
        return np.asarray(known)
    lengths = np.empty(len(dataset), dtype=np.int64)
    for index in range(len(dataset)):
        row = dataset[index]
        if not hasattr(row, "keys") or "input_ids" not in row:
            raise DataError(f"group_by_length needs the length of every row, and row {index} has no input_ids.")
        lengths[index] = len(row["input_ids"])
    return lengths
