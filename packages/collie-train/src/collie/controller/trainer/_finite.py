"""What becomes of a step whose loss or gradient is NaN or infinite."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from collie.controller.trainer._steps import StepResult
from collie.interfaces import NonFiniteError
from collie.parallel import Topology

_ROWS_SHOWN = 16


class FiniteCheck:
    """Looks at each step's loss and gradient norm, which every rank has, so that all of them come to the same end.

    Nothing is fetched or exchanged for it, until a step fails.

    Args:
        policy: the config's on_nan.
        model: in float16, updates that overflow are left out while the loss scale is looked for.
        rows_at: the row numbers of each of this rank's micro-batches, by epoch and step in it.
        alert: takes a code and a sentence, for a step that was left out.
    """

    def __init__(
        self,
        policy: str,
        topology: Topology,
        model: nn.Module,
        rows_at: Callable[[int, int], list[list[int]]],
        alert: Callable[[str, str], None],
    ) -> None:
        self._policy, self._topology = policy, topology
        self._half = next(model.parameters()).dtype is torch.float16
        self._rows_at, self._alert = rows_at, alert

    def __call__(self, result: StepResult, loss: float, global_step: int, epoch: int, index: int) -> None:
        """Look at what step `index` of `epoch` gave; `loss` is the result's, on the host.

        Raises:
            NonFiniteError: it is not finite, and the config does not let it pass; on every rank, with the same words.
        """
        if self._policy == "ignore":
            return
        norm = result.grad_norm if result.grad_norm is not None else 0.0
        scaling = self._half and not result.applied
        if math.isfinite(loss) and (math.isfinite(norm) or scaling):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        done = "the weights have taken the update" if result.applied else "the update was left out"
        rows = self._culprits(result, epoch, index)
        text = f"step {global_step}: {what}, and {done}. Rows of train_dataset in it: {rows}."
        if self._policy == "skip" and not result.applied:
            self._alert("not_finite", text)
            return
        raise NonFiniteError(
            f"{text} Look at these rows, or lower the learning rate. on_nan='skip' goes on without such updates."
        )

    def _culprits(self, result: StepResult, epoch: int, index: int) -> str:
        """Name, by rank, the rows of the micro-batches whose loss is not finite; where there are none, all rows."""
        said = [self._rows(result, epoch, index)]
        if self._topology.world_size > 1:
            mine, said = said[0], said * self._topology.world_size
            dist.all_gather_object(said, mine)
        named = [(rank, bad) for rank, (bad, _) in enumerate(said) if bad]
        named = named or [(rank, rows) for rank, (_, rows) in enumerate(said) if rows]
        return "; ".join(f"rank {rank}: {_listed(rows)}" for rank, rows in named)

    def _rows(self, result: StepResult, epoch: int, index: int) -> tuple[list[int], list[int]]:
        """Return this rank's rows whose loss is not finite, and all of its rows."""
        if self._topology.tp_rank or self._topology.pp_rank != self._topology.pp_size - 1:
            return [], []  # the ranks of a replica have the same rows, and its last stage has the loss
        chosen, shares = self._rows_at(epoch, index), result.shares
        if len(shares) < len(chosen):  # a user's function got all of a step's rows at once
            chosen = [[row for rows in chosen for row in rows]]
        bad = [rows for rows, share in zip(chosen, shares, strict=False) if not torch.isfinite(share).all()]
        return [row for rows in bad for row in rows], [row for rows in chosen for row in rows]


def _listed(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:_ROWS_SHOWN])) + (", …" if len(rows) > _ROWS_SHOWN else "")
