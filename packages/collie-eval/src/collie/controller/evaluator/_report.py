"""From what metrics say to what an evaluation reports: numbers by name, and a few samples."""

import numbers
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from collie.events import Sample
from collie.metrics._text import decode, is_ids


def numbers_of(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the metrics' values, by metric name; those of a dict as `name#key`. Texts are no numbers."""
    results: dict[str, float] = {}
    for name, value in values.items():
        inner = {f"{name}#{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
        results |= {key: number for key, item in inner.items() if (number := _number(item)) is not None}
    return results


def samples_of(result: Mapping[str, Any], tokenizer: Any, limit: int) -> list[Sample]:
    """The first rows of a result that has generated text, at most `limit`."""
    pred = result.get("pred")
    if not isinstance(pred, list | tuple) and not (isinstance(pred, Tensor) and pred.dim() == 2):
        return []
    samples: list[Sample] = []
    for row, value in enumerate(pred[:limit]):
        output = _text(value, tokenizer)
        if output is not None:
            prompt = _text(_row(result.get("input_ids"), row), tokenizer) or ""
            samples.append(
                Sample(prompt=prompt, output=output, target=_text(_row(result.get("target"), row), tokenizer))
            )
    return samples


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, numbers.Real) else None


def _row(rows: Any, index: int) -> Any:
    return rows[index] if isinstance(rows, list | tuple | Tensor) and index < len(rows) else None


def _text(value: Any, tokenizer: Any) -> str | None:
    """A row as text: as it is, decoded where there is a tokenizer, else its ids; of several references the first."""
    if isinstance(value, str):
        return value
    if value is None:
        return None
    if is_ids(value):
        return " ".join(str(int(token)) for token in value) if tokenizer is None else decode(value, tokenizer)
    return _text(value[0], tokenizer) if isinstance(value, list | tuple) else None
