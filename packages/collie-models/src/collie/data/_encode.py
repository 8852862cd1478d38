"""From texts to tokens: input and output apart, their ids joined, the end of the output a target."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from collie.data._rows import Encoded, Refused, Tokens, fitted
from collie.interfaces import DataError
from collie.module import IGNORE_INDEX

logger = logging.getLogger(__name__)


class TextEncoder:
    """Turns {"text"} and {"input", "output"} into tokens with a transformers tokenizer (or any callable of its kind).

    Input and output are tokenised apart and their ids joined: joined as text, a space at the end of the input
    would merge into the first token of the output, and the model would be trained on a split that generation never
    sees.

    With `add_special_tokens` a row begins with what the tokenizer puts before a text (bos, for most), and ends
    with its eos, which is a target: so the model learns to stop. What else the tokenizer would put behind a text
    is left out. `max_length`: tokens a row is cut to, from the right; -1 for no limit.
    """

    def __init__(self, tokenizer: Any, add_special_tokens: bool, max_length: int = -1) -> None:
        self.tokenizer = tokenizer
        self.add_special_tokens = add_special_tokens
        self.max_length = max_length
        self.prefix: list[int] = []
        self.suffix: list[int] = []
        if add_special_tokens:
            self.prefix = _leading_tokens(tokenizer)
            eos = getattr(tokenizer, "eos_token_id", None)
            if eos is None:
                logger.warning(
                    "The tokenizer has no eos_token: nothing marks where an output ends, and generation will not stop."
                )
            else:
                self.suffix = [eos]

    def fingerprint(self) -> str:
        """Changes with everything that the tokens depend on besides the rows."""
        parts = [tokenizer_digest(self.tokenizer), self.prefix, self.suffix, self.max_length]
        return hashlib.sha256(json.dumps(["text", *parts]).encode()).hexdigest()

    def encode(self, rows: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[Encoded | Refused]:
        """Tokens of rows in order; `indices` are their numbers, for errors."""
        texts = [row["text"] for row in rows if "text" in row]
        pairs = [row for row in rows if "text" not in row]
        ids = iter(self.ids([*texts, *(row["input"] for row in pairs), *(row["output"] for row in pairs)]))
        whole = iter([next(ids) for _ in texts])
        given = iter([next(ids) for _ in pairs])
        return [
            fitted(self._join([], self.prefix + next(whole)), index, self.max_length, turns=False)
            if "text" in row
            else fitted(self._join(self.prefix + next(given), next(ids)), index, self.max_length)
            for row, index in zip(rows, indices, strict=True)
        ]

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Ids of many texts in one call, which fast tokenizers spread over threads; no special tokens around them."""
        if not texts:
            return []
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if _is_bare(backend, self.tokenizer):
            # what the tokenizer calls itself, less the tokens' places in the text, which are a fifth of the time
            return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def _join(self, given: list[int], targets: list[int]) -> Tokens:
        if targets[-1:] != self.suffix:  # a text may bring its own end
            targets = targets + self.suffix
        ids = given + targets
        return Tokens(ids, [1] * len(ids), [IGNORE_INDEX] * len(given) + targets)


def _is_bare(backend: Any, tokenizer: Any) -> bool:
    """Whether a fast tokenizer's backend, called by itself, gives the ids that the tokenizer gives."""
    return (
        hasattr(backend, "encode_batch_fast")
        and backend.truncation is None
        and backend.padding is None
        and backend.encode_special_tokens == getattr(tokenizer, "split_special_tokens", False)
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of what a tokenizer makes of texts: equal for two that were loaded from the same files.

    Raises DataError: a callable of one's own whose content cannot be told.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()
        # truncation and padding stand before them: those of the last call, and nothing to a text's ids
        split = bool(getattr(tokenizer, "split_special_tokens", False))  # told to the backend anew at each call
        settings = text[max(text.find('"added_tokens"'), 0) :]
        told = f"{split} {settings}".encode()
    elif hasattr(tokenizer, "get_vocab"):
        kept = [type(tokenizer).__qualname__, sorted(tokenizer.get_vocab().items())]
        told = json.dumps([*kept, getattr(tokenizer, "init_kwargs", {})], default=str, sort_keys=True).encode()
    else:
        try:
            told = pickle.dumps(tokenizer)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise DataError(
                f"the tokenizer, a {type(tokenizer).__name__}, cannot be told from another ({error}), and so what it "
                "makes of rows cannot be kept: give cache=False."
            ) from error
    return hashlib.sha256(told).hexdigest()


def _leading_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: found by comparing one text with and without special tokens."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []
