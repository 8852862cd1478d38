"""A dataset that is read as it is trained on: rows without number in, tokens made of them when their step comes."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from torch.utils.data import IterableDataset, get_worker_info

from collie.data._encoders import training_encoder
from collie.data._ends import check_first_ends
from collie.data._reads import Loaded, Read
from collie.data._rows import Encoded, Refused
from collie.data._stream_order import BlockOrder, Cursor
from collie.data._stream_sources import Item, RowSource, source_of
from collie.interfaces import ConfigError, DataError

_HEAD = 16  # rows that are looked at before a training begins


class RowsToTokens(Protocol):
    """What makes tokens of rows; a data worker has a copy of it."""

    def encode(self, rows: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[Encoded | Refused]:
        """For each row, in order, its tokens, or why it has none; `indices` are the rows' numbers, for the reasons."""
        ...


class CollieStream(IterableDataset[dict[str, Any]]):
    """Rows that are never all in memory, for a Trainer or a CollieDataLoader.

    An epoch is one pass from the stream's beginning. Step k takes the same rows in every layout, as with a list: all
    ranks read the same stream, and each makes tokens of its own rows alone. So every rank (and every data worker) reads
    over all raw rows; over a line of a file that takes well under a microsecond, over a row of a `datasets` stream what
    that library takes for it.

    A training that resumes skips to the block of rows that it stood in and reads on from there. Skipping reads over raw
    rows, without making tokens; or calls the source's `skip(n)`, where it has one and no `set_epoch`.

    Args:
        source: a .jsonl file, or a list of them, read one after another; a function that returns a fresh iterable of
            rows (with a parameter `epoch`, it is told the epoch); whatever can be iterated again and again, such as a
            `datasets` IterableDataset; or a dict of several of these by name, which are mixed. It must give the same
            rows in the same order on every rank and every time, whatever data worker asks.
        tokenizer: of transformers; needed where rows are text. Rows are read as CollieDatasetForTraining reads them.
        add_special_tokens, max_length, chat_template, train_on, train_on_end: as there. The ends of turns are looked
            for in the first rows.
        format: the name of the format that all rows have; None finds it by their columns, as there.
        rows: of an epoch: so many are taken from the stream's beginning.
        steps_per_epoch: optimizer steps of an epoch, in place of `rows`.
        shuffle_buffer: rows in memory at once, whose order is drawn by (seed, epoch) where the loader shuffles; 0 or
            1 keeps the stream's order.
        weights: with a dict of sources: how many rows of each, in proportion. A source that ends begins again.
        encoder: makes tokens of rows in place of `tokenizer`, such as ChatEncoder(tokenizer).
        on_bad_row: "raise": a row that cannot be used ends the training with its reason. "skip": its step has a row
            less, equally in every layout; the loader counts them (`refused`) and logs the first reasons.

    Raises:
        DataError: a source that cannot be read, or not again; a max_length without a token to predict.
        ConfigError: both or neither of rows and steps_per_epoch, a number that cannot be, another on_bad_row, both a
            tokenizer and an encoder.
    """

    def __init__(
        self,
        source: Any,
        tokenizer: Any = None,
        add_special_tokens: bool = True,
        max_length: int = -1,
        *,
        chat_template: str | Path | None = None,
        train_on: Literal["all", "last"] | Sequence[int] = "all",
        train_on_end: bool = True,
        format: str | None = None,
        rows: int | None = None,
        steps_per_epoch: int | None = None,
        shuffle_buffer: int = 10_000,
        weights: Mapping[str, float] | None = None,
        encoder: RowsToTokens | None = None,
        on_bad_row: str = "raise",
    ) -> None:
        _check_length(rows, steps_per_epoch, source)
        if not isinstance(shuffle_buffer, int) or shuffle_buffer < 0:
            raise ConfigError(
                f"shuffle_buffer={shuffle_buffer!r}: give how many rows are shuffled at once, 0 for none."
            )
        if on_bad_row not in ("raise", "skip"):
            raise ConfigError(f"on_bad_row={on_bad_row!r}: give 'raise' or 'skip'.")
        for_tokens = (tokenizer, chat_template, format, max_length != -1, train_on != "all", not train_on_end)
        if encoder is not None and any(for_tokens):
            raise ConfigError(
                "encoder makes tokens of rows in its own way: leave out tokenizer, max_length, chat_template, format, "
                "train_on and train_on_end, or leave out encoder."
            )
        self.rows = rows
        self.steps_per_epoch = steps_per_epoch
        self.shuffle_buffer = shuffle_buffer
        self.on_bad_row = on_bad_row
        self.source = source_of(source, weights)
        self._weights = dict(weights) if weights is not None else {}
        self.encoder: RowsToTokens = encoder or training_encoder(
            tokenizer,
            add_special_tokens,
            max_length,
            chat_template=chat_template,
            train_on=train_on,
            train_on_end=train_on_end,
            format=format,
            caller=type(self).__name__,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows of the first epoch as tokens, in the stream's order; in a worker of torch, its share of them."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for item in islice(self.source.items(0, 0, 0), number, self.rows, workers):
            yield from encoded(self, [item])[0]

    def rows_per_epoch(self, rows_per_step: int) -> int:
        """Rows of an epoch whose full steps have `rows_per_step`."""
        if self.rows is not None:
            return self.rows
        assert self.steps_per_epoch is not None  # __init__ saw to it
        return self.steps_per_epoch * rows_per_step

    @cached_property
    def head(self) -> list[Item]:
        """The first rows as they are read. Raises DataError: there are none."""
        head = list(islice(self.source.items(0, 0, 0), _HEAD))
        if not head:
            raise DataError("the stream has no rows: nothing can be trained on it.")
        return head

    @cached_property
    def described(self) -> str:
        """What tells one stream from another where ranks, or a checkpoint and a run, are compared.

        Its first rows, the bytes of its files, the shares of its mix. It is no digest of all rows: they would have to
        be read for it.
        """
        digest = 0
        for item in self.head:
            digest = zlib.crc32(_as_bytes(item.raw), digest)
        mixed = f" by {self._weights}" if self._weights else ""
        return f"a stream of {self.source.described()}{mixed} whose first rows are {digest:08x}"

    def check(self) -> None:
        """Look at the first rows, before any rank works. Raises DataError: none, or one that cannot be used."""
        rows, reasons = encoded(self, self.head)
        if not rows:
            raise DataError(f"none of the stream's first {len(self.head)} rows can be used: {reasons[0]}")
        check_first_ends(self.encoder, list(_readable(self.source, self.head)))


def _readable(source: RowSource, items: Sequence[Item]) -> Iterator[Any]:
    for item in items:
        with contextlib.suppress(DataError):
            yield source.row(item)


def encoded(stream: CollieStream, items: Sequence[Item]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of tokens that items become, and the reasons of those that become none.

    Raises DataError: a reason, where the stream does not skip such rows.
    """
    raw: list[Any] = []
    read: list[Item] = []
    reasons: list[str] = []
    for item in items:
        try:
            raw.append(stream.source.row(item))
            read.append(item)
        except DataError as error:
            reasons.append(_of(item, str(error)))
    rows = []
    results = stream.encoder.encode(raw, [item.number for item in read]) if raw else []
    for item, result in zip(read, results, strict=True):
        if isinstance(result, Refused):
            reasons.append(_of(item, result.reason))
            continue
        tokens = result.tokens
        rows.append(
            {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "labels": tokens.labels}
            | dict(result.extra)
        )
    if reasons and stream.on_bad_row == "raise":
        raise DataError(reasons[0])
    return rows, reasons


class StreamReader:
    """Reads micro-batches of a stream by their positions in an epoch: in the training's process or in a data worker."""

    def __init__(self, stream: CollieStream, order: BlockOrder) -> None:
        self._stream, self._order = stream, order
        self._cursor: Cursor | None = None

    def __call__(self, read: Read) -> Loaded:
        """The rows of `read`; where none of them can be used, another of its step as a filler."""
        if self._cursor is None or self._cursor.epoch != read.epoch:
            self._cursor = Cursor(self._order, self._stream.source, read.epoch)
        self._cursor.step_at(read.step_rows.start)
        rows, reasons = encoded(self._stream, [self._cursor[position] for position in read[: read.counted]])
        if not rows:
            return Loaded([self._filler(self._cursor, read)], 0, tuple(reasons))
        return Loaded(rows, len(rows), tuple(reasons))

    def _filler(self, cursor: Cursor, read: Read) -> dict[str, Any]:
        reason = ""
        for position in read.step_rows:
            rows, reasons = encoded(self._stream, [cursor[position]])
            if rows:
                return rows[0]
            reason = reasons[0]
        raise DataError(f"none of the {len(read.step_rows)} rows of a step can be used; the last one: {reason}")


def _as_bytes(raw: Any) -> bytes:
    """The same on every rank, which the repr of an object that JSON does not know need not be."""
    if isinstance(raw, bytes):
        return raw
    return json.dumps(raw, sort_keys=True, default=_plain).encode()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__


def _of(item: Item, reason: str) -> str:
    return f"{item.source}: {reason}" if item.source else reason


def _check_length(rows: int | None, steps_per_epoch: int | None, source: Any) -> None:
    if (rows is None) == (steps_per_epoch is None):
        raise ConfigError(
            f"a stream ({type(source).__name__}) does not say how long an epoch is: give rows=, how many rows of it an "
            "epoch has, or steps_per_epoch=, but not both."
        )
    for name, value in (("rows", rows), ("steps_per_epoch", steps_per_epoch)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r}: give a whole number of at least 1.")
