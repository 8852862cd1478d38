"""The dataset of fine-tuning: rows of text or tokens in, rows of tokens with their labels out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from torch.utils.data import Dataset

from collie.data._encoders import RowEncoder, training_encoder
from collie.data._formats import PROCESSED
from collie.data._mixture import Mixture, Part
from collie.data._packing import PackedDataset
from collie.data._parts import OnBadRow, Reading, parts_of, with_rows
from collie.data._report import DataReport, report_of
from collie.data._sources import Source, as_sources
from collie.data._table import TokenTable

TrainOn = Literal["all", "last"] | Sequence[int]


class CollieDatasetForTraining(Dataset[Any]):
    """Rows for training, tokenised once, when it is made.

    A row of `dataset` is a dict in one of these formats, found by its columns:
        "text": every token is a target;
        "input/output": the output's tokens are targets (see TextEncoder for how the two are joined);
        "alpaca" (instruction, output, and input, system, history if it has them): the text of Stanford Alpaca, with
            the output as targets;
        "messages" (OpenAI's, and tools) and "sharegpt" (conversations): what the tokenizer's chat template writes, with
            turns of the assistant as targets (see ChatEncoder);
        "input_ids", and attention_mask and labels if it has them: taken as it is, with every other field it carries.
    Of every other row nothing but its tokens is kept. `dataset[3]` is {"input_ids", "attention_mask", "labels", …},
    lists of one length, labels -100 where there is no target and not shifted (the loss shifts). `dataset[:32]` is
    a dataset over the same memory.

    Args:
        dataset: rows: a list or any iterable, a `datasets` dataset, a path (.json, .jsonl, .csv, .parquet, or a folder
            that `save_processed` wrote), a Source of one of these, or a list of Sources, which are mixed by weight.
        tokenizer: of transformers; needed where a row is text.
        add_special_tokens: put the tokenizer's leading tokens (bos) before a row, and its eos, a target, behind it.
            A chat template writes its own, whatever this says.
        shuffle: mix the rows once, by `seed`. (The loader shuffles every epoch; this is for taking a slice.)
        seed: of shuffle, and of which rows a source with a weight that is not whole gives.
        max_length: tokens a row is cut to, from the right; -1 for no limit.
        chat_template: Jinja text, or a file of it, in place of the tokenizer's. Where it is given, input/output and
            alpaca rows become a turn of the user and one of the assistant; `tokenizer.chat_template` gives the
            tokenizer's own.
        train_on: which turns of the assistant are targets: "all", the "last", or their numbers from 0.
        train_on_end: False leaves the tokens that end a turn out of the targets; a run whose conversations train none
            is refused else.
        chat_template_kwargs: further variables of the chat template, such as {"enable_thinking": False}.
        on_bad_row: "raise" names the first row that cannot be used; "skip" leaves such rows out, and `report` has them.
        processes: how many tokenise; None chooses by the machine and the rows.
        cache: keep the tokens on disk, and take them from there: None for files and `datasets` datasets, True also for
            lists, False never.
        progress: False for no progress bar; else there is one on a terminal.

    Raises:
        DataError: an option that does not fit; no rows; or a row that cannot be used: it lacks columns, needs a
            tokenizer and has none, or has no target token left. It is named by its source and its index there.
        MissingExtraError: a .parquet file without pyarrow.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any = None,
        add_special_tokens: bool = True,
        shuffle: bool = False,
        seed: int = 1024,
        max_length: int = -1,
        *,
        chat_template: str | Path | None = None,
        train_on: TrainOn = "all",
        train_on_end: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        on_bad_row: OnBadRow = "raise",
        processes: int | None = None,
        cache: bool | None = None,
        progress: bool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.add_special_tokens = add_special_tokens
        self.max_length = max_length
        self.chat_template = chat_template
        self.train_on = train_on
        self.train_on_end = train_on_end
        self.chat_template_kwargs = chat_template_kwargs
        reading = Reading(on_bad_row, processes, cache, progress is not False)
        self._set_parts(parts_of(as_sources(dataset), self._encoder, max_length, reading), shuffle, seed)

    @classmethod
    def from_json(
        cls,
        path: str | Path,
        tokenizer: Any = None,
        add_special_tokens: bool = True,
        shuffle: bool = False,
        seed: int = 1024,
        max_length: int = -1,
        **options: Any,
    ) -> Self:
        """The rows of a JSON file that is a list, or of a file with one JSON object a line.

        options: further keyword arguments of the class. Raises DataError naming the file, and the row as the class
        does.
        """
        return cls(Source(path), tokenizer, add_special_tokens, shuffle, seed, max_length, **options)

    @classmethod
    def from_processed(cls, path: str | Path, shuffle: bool = False, seed: int = 1024) -> Self:
        """The dataset that `save_processed` wrote to the folder `path`: no tokenizer is needed, nothing is executed."""
        self = cls.__new__(cls)
        self.tokenizer, self.add_special_tokens, self.max_length = None, True, -1
        self.chat_template, self.train_on = None, "all"
        self.train_on_end, self.chat_template_kwargs = True, None
        table = TokenTable.load(Path(path), mapped=True)
        self._set_parts([with_rows(Part(Source(path), str(path), PROCESSED, table, table.refused))], shuffle, seed)
        return self

    def save_processed(self, path: str | Path) -> None:
        """Write the tokens, in this dataset's order, to the folder `path` (safetensors), for `from_processed`."""
        self._mixture.table().save(Path(path), self._order)

    save_propressed = save_processed  # the name that existing scripts call

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64, without reading them."""
        return self._mixture.lengths(self._order)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The sources with their tokens."""
        return self._mixture.parts

    @property
    def report(self) -> DataReport:
        """What became of the rows, by source: counts of tokens and targets, what was cut and skipped; str() is a table.

        It reads which tokens are targets, all of them, whenever it is asked for.
        """
        return report_of(self._mixture, self._order)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Self:
        """One row as a dict of lists; of a slice, a dataset of this class over the same memory."""
        if isinstance(index, slice):
            part = copy.copy(self)
            part._order = self._order[index]
            return part
        return self._shown(self._mixture.row(int(self._order[index])))

    def packed(self, max_length: int) -> PackedDataset:
        """These rows in packs of at most max_length tokens, of which none is longer; see PackedDataset."""
        return PackedDataset(self, max_length)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows, {int(self.lengths.sum())} tokens)"

    def _shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row as it is handed out, of what the table keeps of it."""
        return row

    def _encoder(self, format: str | None) -> RowEncoder:
        """What makes tokens of a source's rows, which are of the format of that name, or each of its own."""
        return training_encoder(
            self.tokenizer,
            self.add_special_tokens,
            self.max_length,
            chat_template=self.chat_template,
            train_on=self.train_on,
            train_on_end=self.train_on_end,
            chat_template_kwargs=self.chat_template_kwargs,
            format=format,
            caller=type(self).__name__,
        )

    def _set_parts(self, parts: Sequence[Part], shuffle: bool, seed: int) -> None:
        self._mixture = Mixture(parts)
        self._order = self._mixture.order(shuffle, seed)


class CollieDatasetForPerplexity(CollieDatasetForTraining):
    """Rows whose targets a model is scored on: those of CollieDatasetForTraining, for EvaluatorForPerplexity."""
