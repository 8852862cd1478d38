"""The part of a recipe that says what is trained on: sources, tokenizer, chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from collie.interfaces import ConfigError, require

if TYPE_CHECKING:
    from collie.data import CollieDatasetForTraining, Source

_OF_DATASETS = ("dataset_dict.json", "dataset_info.json")  # what a folder has that `datasets` saved


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """Where rows come from: `collie.data.Source` in a file.

    path: .json, .jsonl, .csv, .parquet, a folder of save_processed, or one that `datasets` saved; of that, `split`
    names the split.
    """

    path: str
    name: str | None = None
    weight: float = 1.0
    max_rows: int | None = None
    split: str | None = None
    format: str | None = None

    def source(self, folder: Path, limit: int | None = None) -> Source:
        """The source; a path that is in `folder` is taken from there. limit: no more than this many rows.

        Raises DataError: what a Source refuses.
        """
        from collie.data import Source

        path = Path(placed(self.path, folder))
        data: Any = path
        if any((path / name).is_file() for name in _OF_DATASETS):
            data = require("datasets", "collie-models[datasets]", f"{path}").load_from_disk(str(path))
        rows = min((count for count in (self.max_rows, limit) if count is not None), default=None)
        return Source(data, self.name or self.path, self.weight, rows, self.split, self.format)


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The data of a run. Each field is that of CollieDatasetForTraining, unless said here.

    data: the sources, which are mixed by weight. tokenizer: a folder or a name of the Hub; without it that of `model`.
    Paths are looked for beside the recipe first.
    """

    data: tuple[SourceRecipe, ...]
    tokenizer: str | None = None
    model: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    train_on: Literal["all", "last"] | tuple[int, ...] = "all"
    train_on_end: bool = True
    max_length: int = -1
    add_special_tokens: bool = True
    on_bad_row: Literal["raise", "skip"] = "raise"
    seed: int = 1024

    def load_tokenizer(self, folder: Path) -> Any:
        """The tokenizer, without any weight of its model.

        Raises ConfigError: none is named, or it cannot be loaded.
        """
        name = self.tokenizer or self.model
        if name is None:
            raise ConfigError("no tokenizer: give `tokenizer` (or `model`), a folder or a name of the Hub.")
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(placed(name, folder))
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"the tokenizer {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error

    def dataset(self, folder: Path, tokenizer: Any, limit: int | None = None) -> CollieDatasetForTraining:
        """The dataset; paths are looked for in `folder` first. limit: no more than this many rows of each source.

        Raises ConfigError: no sources; DataError: what the dataset refuses.
        """
        from collie.data import CollieDatasetForTraining

        if not self.data:
            raise ConfigError("data is empty: give at least one source with a path.")
        template = self.chat_template
        return CollieDatasetForTraining(
            [entry.source(folder, limit) for entry in self.data],
            tokenizer,
            self.add_special_tokens,
            seed=self.seed,
            max_length=self.max_length,
            chat_template=template if template is None or "{" in template else placed(template, folder),
            train_on=self.train_on,
            train_on_end=self.train_on_end,
            chat_template_kwargs=self.chat_template_kwargs,
            on_bad_row=self.on_bad_row,
            cache=None if limit is None else False,  # which keeps all rows of a file
        )


def placed(path: str, folder: Path) -> str:
    """`path` in `folder`, where there is such a file; else `path` as it is: from where the process runs, or a name."""
    beside = folder / path
    return str(beside) if beside.exists() else path
