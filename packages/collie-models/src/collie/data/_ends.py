"""Whether a dataset's conversations train the tokens that end a turn: a model that never saw one never stops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from collie.data._build import Chunk, TableBuilder
from collie.data._chat import ChatEncoder, special_ids
from collie.data._dataset import CollieDatasetForTraining
from collie.data._encoders import RowEncoder
from collie.data._mixture import Part
from collie.data._table import TokenTable
from collie.interfaces import DataError

_ROWS_AT_ONCE = 1024  # the first ones answer, unless the answer is no
_CONVERSATIONS = frozenset({"messages", "sharegpt"})
_QUESTIONS = frozenset({"input/output", "alpaca"})  # conversations where a chat template was asked for


def check_ends(dataset: CollieDatasetForTraining) -> None:
    """Raise DataError where the dataset has conversations, and no turn of them is trained up to its end.

    train_on_end=False asks for that. Rows of text and of tokens are not looked at.
    """
    parts = _conversations(dataset)
    if not parts or not dataset.train_on_end:
        return
    ends = special_ids(dataset.tokenizer)
    if any(trains_an_end(part.table, ends) for part in parts):
        return
    rows = sum(len(part.table) for part in parts)
    cut = sum(int(np.count_nonzero(part.table.inside_turn)) for part in parts)
    if cut == rows:
        why = f"max_length={dataset.max_length} cuts every one of the {rows:,} conversations before the end of a turn"
        mend = "Raise max_length"
    else:
        why = (
            f"the chat template ends no turn of the {rows:,} conversations with a special token of the tokenizer, or "
            "leaves it out of {% generation %}"
        )
        mend = "Give a chat_template that ends each turn with such a token (`collie-train inspect` shows the targets)"
    raise DataError(
        f"the end of a turn is never trained, so that the model would not learn to stop: {why}. {mend}, or, if that is "
        "meant, give the dataset train_on_end=False."
    )


def check_first_ends(encoder: object, rows: Sequence[Any]) -> None:
    """Raise DataError where the first rows of a stream have conversations, and none of them trains the end of a turn.

    encoder: the stream's. Rows that it refuses, and what an encoder of somebody's own makes, are not looked at.
    """
    chat, talks = encoder, list(rows)
    if isinstance(encoder, RowEncoder):
        chat = encoder.encoders.get("messages")
        talks = [example for example in _examples(encoder, rows) if "messages" in example]
    if not isinstance(chat, ChatEncoder) or not chat.train_on_end:
        return
    builder = TableBuilder()
    builder.add(Chunk.of(chat.encode(talks, range(len(talks)))))
    table = builder.finish()
    if len(table) and not trains_an_end(table, chat.stops):
        raise DataError(
            f"the end of a turn is trained in none of the stream's first {len(table)} conversations, so that the model "
            f"would not learn to stop. Raise max_length={chat.max_length} if it cuts them, give a chat_template that "
            "ends each turn with a special token of the tokenizer, or, if that is meant, give train_on_end=False."
        )


def _examples(encoder: RowEncoder, rows: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    for index, row in enumerate(rows):
        with contextlib.suppress(DataError):
            yield encoder.example(row, index)


def trains_an_end(table: TokenTable, ends: Iterable[int]) -> bool:
    """Whether in any row a run of targets ends with one of the tokens `ends`. Reads no further than the first such."""
    wanted = np.fromiter(ends, dtype=np.int32)
    for first in range(0, len(table), _ROWS_AT_ONCE):
        rows = table.offsets[first : first + _ROWS_AT_ONCE + 1]
        part = slice(int(rows[0]), int(rows[-1]))
        targets = table.targets(part)
        goes_on = np.append(targets[1:], False)
        goes_on[np.maximum(rows[1:] - rows[0] - 1, 0)] = False  # the next token is another row's
        last = table.columns["input_ids"][part][targets & ~goes_on]
        if np.isin(last, wanted).any():
            return True
    return False


def _conversations(dataset: CollieDatasetForTraining) -> list[Part]:
    asked = _CONVERSATIONS | (_QUESTIONS if dataset.chat_template is not None else frozenset())
    return [part for part in dataset.parts if asked & set(part.format.split(", "))]
