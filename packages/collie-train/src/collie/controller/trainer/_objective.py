"""From a micro-batch to its share of the step's loss.

The loss of a step is a mean over the whole global batch, in every layout. Each micro-batch contributes its share of
that mean, so shares are summed over micro-batches and dp ranks, never averaged.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from collie.data import MicroBatch
from collie.interfaces import ConfigError, DataError
from collie.module import GPTLMLoss

IGNORED = -100


@dataclass(frozen=True)
class Totals:
    """What a step's global batch holds, over all micro-batches and dp ranks."""

    targets: int
    rows: int


class Objective(Protocol):
    """Something that turns a micro-batch into its share of the step's loss."""

    def __call__(self, forward: Callable[..., Any], micro_batch: MicroBatch, totals: Totals) -> Tensor | float:
        """Return the share: a 0-d tensor to backpropagate, or a float where the user's function did that itself."""
        ...


class TokenMean:
    """The mean of the next-token loss over all target tokens of the global batch.

    Models that take `return_logits` compute it inside their head, which never makes the full logits [B, S, V].
    """

    def __init__(self, model: nn.Module, loss: GPTLMLoss) -> None:
        self._inputs = Inputs(model)
        self._loss = loss
        self._in_head = "return_logits" in inspect.signature(model.forward).parameters

    def __call__(self, forward: Callable[..., Any], micro_batch: MicroBatch, totals: Totals) -> Tensor:
        inputs = self._inputs(micro_batch.batch)
        labels = inputs.pop("labels")
        if self._in_head:
            labels = labels.masked_fill(labels == self._loss.ignore_index, IGNORED)
            output = forward(**inputs, labels=labels, return_logits=False, num_items_in_batch=totals.targets)
            share: Tensor = output.loss
        else:
            nll_sum, _ = self._loss.sum(forward(**inputs).logits, labels)
            share = nll_sum / totals.targets
        return share if micro_batch.rows else share * 0.0  # a filler keeps ranks in step and counts for nothing


class RowMean:
    """The mean of a user's loss over the rows of the global batch.

    Args:
        model: the model whose inputs are taken from the batch.
        loss: called with the batch's and the output's entries that its parameters name; returns a scalar, the mean
            over the rows it got.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        self._inputs = Inputs(model)
        self._loss = loss

    def __call__(self, forward: Callable[..., Any], micro_batch: MicroBatch, totals: Totals) -> Tensor:
        inputs = self._inputs(micro_batch.batch)
        labels = inputs.pop("labels", None)
        output = forward(**inputs)
        known = {**self._inputs.on_device(micro_batch.batch), **dict(output.items()), "labels": labels}
        return call_by_name(self._loss, known, "loss_fn") * (micro_batch.rows / totals.rows)


class UserStep:
    """A user's train_fn(trainer, batch, global_step), called once a micro-batch.

    It returns a scalar tensor, the mean loss of its rows, which the step backpropagates; or a float, where it ran
    backward and step itself.
    """

    def __init__(self, model: nn.Module, function: Callable[[Any, dict[str, Any], int], Tensor | float], trainer: Any):
        self._inputs = Inputs(model)
        self._function = function
        self._trainer = trainer

    def __call__(self, forward: Callable[..., Any], micro_batch: MicroBatch, totals: Totals) -> Tensor | float:
        batch = self._inputs.on_device(micro_batch.batch)
        loss = self._function(self._trainer, batch, self._trainer.global_batch_idx + 1)
        if not isinstance(loss, Tensor | float | int):
            raise ConfigError(f"train_fn returned {type(loss).__name__}; it must return a scalar tensor or a float.")
        share = loss * (micro_batch.rows / totals.rows)
        return share if isinstance(share, Tensor) and share.requires_grad else float(share)


class Inputs:
    """The entries of a batch that a model's forward takes, on the model's device."""

    def __init__(self, model: nn.Module) -> None:
        parameters = inspect.signature(model.forward).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._names = {p.name for p in parameters}
        self._model = model

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's inputs with `labels` among them."""
        tensors = {k: v for k, v in self.on_device({**batch, "labels": targets(batch)}).items() if torch.is_tensor(v)}
        return {k: v for k, v in tensors.items() if k == "labels" or self._takes_all or k in self._names}

    def on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with its tensors on the model's device."""
        device = next(self._model.parameters()).device
        return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}


def targets(batch: Mapping[str, Any]) -> Tensor:
    """Return the labels [B, S] of a batch; rows without labels learn all their tokens."""
    if "labels" in batch:
        return batch["labels"]
    if "input_ids" not in batch:
        raise DataError(f"a batch has {sorted(batch)}, but neither labels nor input_ids.")
    ids: Tensor = batch["input_ids"]
    mask = batch.get("attention_mask")
    return ids if mask is None else ids.masked_fill(mask == 0, IGNORED)


def count_targets(batch: Mapping[str, Any], ignored: int) -> int:
    """Count the tokens that the shifted loss learns: labels from the second position on."""
    return int((targets(batch)[:, 1:] != ignored).sum())


def count_tokens(batch: Mapping[str, Any]) -> int:
    """Count the input tokens of a batch that are not padding."""
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else batch["input_ids"].numel()


def call_by_name(function: Callable[..., Any], known: Mapping[str, Any], what: str) -> Any:
    """Call `function` with the entries of `known` that its parameters name.

    Raises:
        ConfigError: a parameter without default has no entry.
    """
    call = function.forward if isinstance(function, nn.Module) else function
    parameters = inspect.signature(call).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function(**known)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY, p.POSITIONAL_ONLY)]
    missing = [p.name for p in named if p.default is p.empty and known.get(p.name) is None]
    if missing:
        raise ConfigError(
            f"{what} asks for {missing}, which neither the batch nor the model's output has. "
            f"Name its parameters after these: {sorted(k for k, v in known.items() if v is not None)}."
        )
    return function(**{p.name: known[p.name] for p in named if p.name in known})
