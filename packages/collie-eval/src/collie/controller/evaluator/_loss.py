"""The loss of a batch's target tokens, as a sum and a count."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from collie.interfaces import ConfigError
from collie.module import (
    IGNORE_INDEX,
    GPTLMLoss,
    as_dict,
    call_by_name,
    count_targets,
    model_inputs,
    targets,
    token_loss,
)


def summed_loss(model: nn.Module, batch: dict[str, Any], loss_fn: Callable[..., Any]) -> dict[str, Any]:
    """Run the model on `batch` (input_ids, and labels where not every token is a target; both [B, S]).

    With GPTLMLoss a model that can sums its loss inside the head, and the full [B, S, V] logits never exist. Any other
    loss gets what its parameters name, from the batch and the model's outputs, and gives the mean over the batch's
    target tokens. A row's first token is no target, also where padding stands before it: nothing predicts it.

    Returns:
        loss_sum: 0-d, nats over the target tokens of the batch; tokens: their number.

    Raises:
        DataError: the batch has neither labels nor input_ids.
        ConfigError: an own loss does not fit the batch and the outputs, or gave no scalar.
    """
    ignore_index = getattr(loss_fn, "ignore_index", IGNORE_INDEX)
    labels = targets(batch, ignore_index)
    tokens = int(count_targets(labels, ignore_index))
    batch = {**batch, "labels": labels}
    if type(loss_fn) is GPTLMLoss:  # a subclass may have a forward of its own
        return {"loss_sum": token_loss(model, batch, loss_fn), "tokens": tokens}
    return {"loss_sum": _own_loss(model, batch, loss_fn, tokens), "tokens": tokens}


def _own_loss(model: nn.Module, batch: dict[str, Any], loss_fn: Callable[..., Any], tokens: int) -> Tensor:
    outputs = as_dict(model(**model_inputs(model, batch)))
    loss = call_by_name(loss_fn, {**batch, **outputs})
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ConfigError(f"loss_fn must return a scalar, and returned a tensor of shape {list(loss.shape)}.")
    mean = torch.as_tensor(loss, dtype=torch.float64)
    return mean * tokens if tokens else mean.new_zeros(())  # a mean over none is nan
