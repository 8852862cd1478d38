"""From a micro-batch to its share of the step's loss.

The loss of a step is a mean over the whole global batch, in every layout. Each micro-batch contributes its share of
that mean, so shares are summed over micro-batches and dp ranks, never averaged.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from collie.data import MicroBatch
from collie.interfaces import ConfigError
from collie.module import GPTLMLoss, as_dict, call_by_name, count_targets, model_inputs, targets, token_loss


class Objective(Protocol):
    """Something that turns a micro-batch, on the model's device, into its share of the step's loss."""

    def weigh(self, micro_batch: MicroBatch) -> int:
        """Return how many of the things that the loss is a mean over this micro-batch has; 0 for a filler."""
        ...

    def __call__(self, forward: Callable[..., Any], micro_batch: MicroBatch, total: int) -> Tensor | float:
        """Return the share: a 0-d tensor to backpropagate, or a float where the user's function did that itself.

        Args:
            forward: calls the model, through the engine where there is one.
            micro_batch: this rank's rows, on the model's device.
            total: the weight of the whole global batch.
        """
        ...


class TokenMean:
    """The mean of the next-token loss over all target tokens of the global batch."""

    def __init__(self, model: nn.Module, loss: GPTLMLoss) -> None:
        self._model = model
        self._loss = loss

    def weigh(self, micro_batch: MicroBatch) -> int:
        ignored = self._loss.ignore_index
        return int(count_targets(targets(micro_batch.batch, ignored), ignored)) if micro_batch.rows else 0

    def __call__(self, forward: Callable[..., Any], micro_batch: MicroBatch, total: int) -> Tensor:
        share = token_loss(self._model, micro_batch.batch, self._loss, total, forward)
        return share if micro_batch.rows else share * 0.0  # a filler keeps ranks in step and counts for nothing


class RowMean:
    """The mean of a user's loss over the rows of the global batch. A pack of rows is one: what it got is packs.

    Args:
        model: the model whose inputs are taken from the batch.
        loss: called with the batch's and the output's entries that its parameters name; returns a scalar, the mean
            over the rows it got.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        self._model = model
        self._loss = loss

    def weigh(self, micro_batch: MicroBatch) -> int:
        return micro_batch.rows

    def __call__(self, forward: Callable[..., Any], micro_batch: MicroBatch, total: int) -> Tensor:
        batch = micro_batch.batch
        output = as_dict(forward(**model_inputs(self._model, batch)))
        loss: Tensor = call_by_name(self._loss, {**batch, **output}, "loss_fn")
        return loss * (micro_batch.rows / total)


class UserStep:
    """A user's train_fn(trainer, batch, global_step), called once a micro-batch. Of packs each counts as a row.

    It returns a scalar tensor, the mean loss of its rows, which the step backpropagates; or a float, where it ran
    backward and step itself.
    """

    def __init__(self, function: Callable[[Any, dict[str, Any], int], Tensor | float], trainer: Any) -> None:
        self._function = function
        self._trainer = trainer

    def weigh(self, micro_batch: MicroBatch) -> int:
        return micro_batch.rows

    def __call__(self, forward: Callable[..., Any], micro_batch: MicroBatch, total: int) -> Tensor | float:
        loss = self._function(self._trainer, micro_batch.batch, self._trainer.global_batch_idx + 1)
        if not isinstance(loss, Tensor | float | int):
            raise ConfigError(f"train_fn returned {type(loss).__name__}; it must return a scalar tensor or a float.")
        share = loss * (micro_batch.rows / total)
        return share if isinstance(share, Tensor) and share.requires_grad else float(share)


def choose_objective(
    model: nn.Module, loss_fn: Callable[..., Tensor], train_fn: Callable[..., Tensor | float] | None, trainer: Any
) -> Objective:
    """Return how a micro-batch becomes a loss: by the user's function, by the token mean, or by the user's loss."""
    if train_fn is not None:
        return UserStep(train_fn, trainer)
    if type(loss_fn) is GPTLMLoss:  # a subclass may have a forward of its own
        return TokenMean(model, loss_fn)
    return RowMean(model, loss_fn)
