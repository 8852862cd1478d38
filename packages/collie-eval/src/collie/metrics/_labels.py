"""Predicted and true labels, side by side."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, as_tensor

from collie.interfaces import DataError
from collie.metrics._text import need
from collie.module import IGNORE_INDEX


def label_pairs(metric: str, result: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """(predicted, true) for every label of a result that counts.

    Args:
        metric: who asks, for what is said of bad rows.
        result: target, a tensor [B] or [B, S] or a list of numbers or texts, in which -100 does not count; pred, the
            same, or with one dimension more, the classes' scores [..., C], of which the highest is taken.

    Raises:
        DataError: a key is missing, or shapes or lengths do not fit.
    """
    need(metric, result, "pred", "target", use="use EvaluatorForClassification")
    pred, target = result["pred"], result["target"]
    if isinstance(pred, Tensor) and isinstance(target, Tensor):
        return _of_tensors(metric, pred, target)
    if (
        isinstance(pred, str)
        or isinstance(target, str)
        or not hasattr(pred, "__len__")
        or not hasattr(target, "__len__")
    ):
        raise DataError(f"{metric} reads pred and target as tensors or lists, one item a row.")
    if len(pred) != len(target):
        raise DataError(f"{metric} got {len(pred)} rows of pred and {len(target)} rows of target: give as many.")
    pairs = []
    for one, other in zip(pred, target, strict=True):
        if isinstance(one, Tensor) or isinstance(other, Tensor):
            pairs += _of_tensors(metric, as_tensor(one), as_tensor(other))
        elif not (isinstance(other, int) and other == IGNORE_INDEX):
            pairs.append((one, other))
    return pairs


def _of_tensors(metric: str, pred: Tensor, target: Tensor) -> list[tuple[Any, Any]]:
    if pred.dim() == target.dim() + 1:
        pred = pred.argmax(dim=-1)
    if pred.shape != target.shape:
        raise DataError(
            f"{metric} got pred of shape {list(pred.shape)} and target of shape {list(target.shape)}: they must be "
            "equal, or pred has the classes' scores as one dimension more."
        )
    counts = target != IGNORE_INDEX
    return list(zip(pred.to(target.device)[counts].tolist(), target[counts].tolist(), strict=True))
