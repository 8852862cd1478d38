"""The loss of a batch's target tokens, as a sum and a count."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from collie.controller.evaluator._calls import accepts, as_dict, call_by_name, model_inputs
from collie.interfaces import ConfigError, DataError
from collie.module import GPTLMLoss

_IGNORE = -100


def summed_loss(model: nn.Module, batch: dict[str, Any], loss_fn: Callable[..., Any]) -> dict[str, Any]:
    """Run the model on `batch` (input_ids and labels, both [B, S]).

    A row's first token is no target, also where padding stands before it: nothing that predicts it is there. With GPTLMLoss a model that can sums its loss inside the head, and the full [B, S, V] logits never exist. Any other
    loss gets what its parameters name, from the batch and the model's outputs, and gives the mean over the batch's
    target tokens.

    Returns:
        loss_sum: 0-d, nats over the target tokens of the batch; tokens: their number.

    Raises:
        DataError: the batch has no labels.
        ConfigError: an own loss does not fit the batch and the outputs, or gave no scalar.
    """
    if not isinstance(batch.get("labels"), Tensor):
        raise DataError(
            f"The loss of a batch needs labels, and the batch has {', '.join(batch)}: "
            "give the evaluator rows with labels, or a CollieDatasetForTraining."
        )
    ignore_index = getattr(loss_fn, "ignore_index", _IGNORE)
    batch = {**batch, "labels": _predictable(batch["labels"], batch.get("attention_mask"), ignore_index)}
    if type(loss_fn) is not GPTLMLoss:  # a subclass may have a forward of its own
        return _own_loss(model, batch, loss_fn)
    if accepts(model, "return_logits"):
        return _loss_in_head(model, batch, ignore_index)
    loss_sum, tokens = loss_fn.sum(as_dict(model(**model_inputs(model, batch)))["logits"], batch["labels"])
    return {"loss_sum": loss_sum, "tokens": tokens}


def _loss_in_head(model: nn.Module, batch: dict[str, Any], ignore_index: int) -> dict[str, Any]:
    labels = batch["labels"].masked_fill(batch["labels"] == ignore_index, _IGNORE)
    inputs = model_inputs(model, batch)
    outputs = model(**inputs, labels=labels, return_logits=False, num_items_in_batch=1)  # by 1: a sum, not a mean
    return {"loss_sum": outputs.loss, "tokens": _targets(labels)}


def _own_loss(model: nn.Module, batch: dict[str, Any], loss_fn: Callable[..., Any]) -> dict[str, Any]:
    outputs = as_dict(model(**model_inputs(model, batch)))
    loss = call_by_name(loss_fn, {**batch, **outputs})
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ConfigError(f"loss_fn must return a scalar, and returned a tensor of shape {list(loss.shape)}.")
    tokens = _targets(batch["labels"])
    mean = torch.as_tensor(loss, dtype=torch.float64)
    return {"loss_sum": mean * tokens if tokens else mean.new_zeros(()), "tokens": tokens}  # a mean over none is nan


def _predictable(labels: Tensor, attention_mask: Tensor | None, ignore_index: int) -> Tensor:
    """`labels` [B, S] without those that a padding position would predict, which left-padding makes of first tokens."""
    if attention_mask is None:
        return labels
    after_padding = torch.zeros_like(labels, dtype=torch.bool)
    after_padding[:, 1:] = attention_mask[:, :-1] == 0
    return labels.masked_fill(after_padding, ignore_index)


def _targets(labels: Tensor) -> int:
    """How many tokens are predicted: the first of a row has nothing before it."""
    return int((labels[:, 1:] != _IGNORE).sum())
