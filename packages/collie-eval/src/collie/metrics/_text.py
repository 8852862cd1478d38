"""Token ids as text, and rows of texts with their references."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from collie.interfaces import DataError


def is_ids(value: Any) -> bool:
    """Whether `value` is one row of token ids: a 1-d integer tensor or a list of ints."""
    if isinstance(value, Tensor):
        return value.dim() == 1 and not value.is_floating_point()
    return isinstance(value, list | tuple) and all(isinstance(item, int) for item in value)


def decode(ids: Tensor | Sequence[int], tokenizer: Any, *, skip_special_tokens: bool = True) -> str:
    """The text of one row of ids; negative ids (-100) are no tokens and are left out."""
    row: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    text: str = tokenizer.decode([token for token in row if token >= 0], skip_special_tokens=skip_special_tokens)
    return text


def one_line(text: str) -> str:
    """`text` with its line breaks written as \\n and \\r, so that a row stays a line."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def need(metric: str, result: Mapping[str, Any], *keys: str, use: str) -> None:
    """Raises DataError, naming what is there and what to do, unless `result` has all `keys`."""
    if any(key not in result for key in keys):
        raise DataError(
            f"{metric} needs {' and '.join(keys)} in the result of eval_fn, which has {', '.join(result) or 'no key'}: "
            f"{use}, or return {'both' if len(keys) == 2 else ' and '.join(keys)} from eval_fn."
        )


def rows_of(values: Any) -> list[Any]:
    """One item a row; a single text or a single row of ids is one row."""
    if isinstance(values, str):
        return [values]
    if isinstance(values, Tensor):
        return [values] if values.dim() == 1 else list(values)
    rows = list(values)
    return [rows] if rows and is_ids(rows) else rows


def texts_and_references(metric: str, result: Mapping[str, Any], tokenizer: Any) -> list[tuple[str, list[str]]]:
    """Each row of a result as its text and what that is to be compared with.

    Args:
        metric: who asks, for what is said of bad rows.
        result: pred, one item a row: a text, or token ids; target, one item a row: the same, or a list of them, of
            which each is a reference.

    Raises:
        DataError: a key is missing, pred and target have different numbers of rows, a row has no reference, or there
            are ids and no tokenizer.
    """
    need(metric, result, "pred", "target", use="use EvaluatorForGeneration on rows that have an output")
    preds, targets = rows_of(result["pred"]), rows_of(result["target"])
    if len(preds) != len(targets):
        raise DataError(f"{metric} got {len(preds)} rows of pred and {len(targets)} rows of target: give as many.")
    pairs = []
    for row, (pred, target) in enumerate(zip(preds, targets, strict=True)):
        if target is None or (isinstance(target, list | tuple) and not target):
            raise DataError(
                f"{metric}: row {row} of the batch has no target to compare with: give each row an output (a text or "
                "a list of references)."
            )
        several = isinstance(target, list | tuple) and not is_ids(target)
        references = list(target) if several else [target]
        pairs.append((text_of(metric, pred, tokenizer), [text_of(metric, each, tokenizer) for each in references]))
    return pairs


def text_of(metric: str, row: Any, tokenizer: Any) -> str:
    """A row as text: as it is, or decoded. Raises DataError: it is neither text nor ids, or no tokenizer is there."""
    if isinstance(row, str):
        return row
    if not is_ids(row):
        raise DataError(f"{metric} reads texts or rows of token ids, and got a row {type(row).__name__}.")
    if tokenizer is None:
        raise DataError(f"{metric} got token ids and the evaluator has no tokenizer: give it tokenizer=…")
    return decode(row, tokenizer)
