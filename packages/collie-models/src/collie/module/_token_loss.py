"""The summed loss of a batch's target tokens, by the cheapest way that the model has."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from collie.interfaces import DataError
from collie.module._by_name import accepts, as_dict, model_inputs
from collie.module._loss import IGNORE_INDEX, GPTLMLoss
from collie.module._packed import without_first_tokens

# B batch, S sequence


def targets(batch: Mapping[str, Any], ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return a batch's labels [B, S] with `ignore_index` at each position that is no target.

    Rows without labels learn all their tokens. A row's first token is no target where padding or another row of its
    pack stands before it, as it is none without: nothing predicts it.

    Raises:
        DataError: the batch has neither labels nor input_ids.
    """
    labels = batch.get("labels", batch.get("input_ids"))
    if not isinstance(labels, Tensor):
        raise DataError(f"a batch's loss needs labels or input_ids, and this batch has {', '.join(sorted(batch))}.")
    ignored = labels == IGNORE_INDEX
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor):
        padding = mask == 0
        ignored |= padding
        ignored[:, 1:] |= padding[:, :-1]
    labels = labels.masked_fill(ignored, ignore_index)
    starts = batch.get("cu_seqlens")
    return labels if starts is None else without_first_tokens(labels, starts, ignore_index)


def token_loss(
    model: nn.Module,
    batch: Mapping[str, Any],
    loss: GPTLMLoss,
    divisor: float | Tensor = 1,
    forward: Callable[..., Any] | None = None,
) -> Tensor:
    """Return the negative log-likelihood of the batch's targets, summed, divided by `divisor`: 0-d, float32, in nats.

    A model that takes `return_logits` sums it inside its head, and the full logits [B, S, V] never exist.

    Args:
        model: what the batch's entries are matched to.
        batch: on the model's device.
        loss: says which label is no target.
        divisor: number of targets of the whole that the loss is a mean over; 1 leaves the sum.
        forward: what is called in place of the model, such as the engine around it.
    """
    call = model if forward is None else forward
    labels = targets(batch, loss.ignore_index)
    inputs = model_inputs(model, batch)
    if accepts(model, "return_logits"):
        labels = labels.masked_fill(labels == loss.ignore_index, IGNORE_INDEX)
        labels[:, 0] = IGNORE_INDEX  # no target as it is, and none after prompts that PEFT puts before it
        result: Tensor = call(**inputs, labels=labels, return_logits=False, num_items_in_batch=divisor).loss
        return result
    logits_BSV: Tensor = as_dict(call(**inputs))["logits"]
    return (
        loss.sum(logits_BSV[:, -labels.shape[1] :], labels)[0] / divisor
    )  # without those of prompts before the tokens


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on `device`."""
    return {key: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for key, v in batch.items()}
