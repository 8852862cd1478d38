"""Token ids as text."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


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
