"""What a recipe's data becomes: the report, and single rows token by token with what is trained of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collie.interfaces import ConfigError, DataError
from collie.recipes._data import DataRecipe

if TYPE_CHECKING:
    from collie.data import CollieDatasetForTraining, DataReport


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """One row of a source, `number` its place there.

    ids, texts, trained [tokens]: each token, what it adds to the text, whether it is a target. A character of several
    tokens is the text of the last of them. uncut: tokens before max_length cut it. reason: why there are none.
    """

    source: str
    number: int
    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    trained: tuple[bool, ...] = ()
    uncut: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """report: counts by source. refused: why no run would train on it, None where one would. row: the one asked for."""

    report: DataReport
    refused: str | None
    row: InspectedRow

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"refused": self.refused, "row": asdict(self.row), **self.report.as_dict()}


def inspect_data(
    recipe: DataRecipe, folder: Path, *, row: int | None = None, source: str | None = None, limit: int | None = None
) -> Inspection:
    """Make the tokens of a recipe's data as a run makes them, and tell what became of them.

    Rows that cannot be used are skipped and counted, whatever the recipe's on_bad_row says; with "raise" a run would
    be refused for the first.

    Args:
        folder: where the recipe lies: paths are looked for there first.
        row: which row of a source to show, by its number there; None for the first that can be used.
        source: the name of that source; None for the first.
        limit: look at no more than this many rows of each source.

    Raises:
        ConfigError: no tokenizer, or an unknown source. DataError: no row can be used, or there is no such row.
    """
    from collie.data import check_rows

    tokenizer = recipe.load_tokenizer(folder)
    dataset = replace(recipe, on_bad_row="skip").dataset(folder, tokenizer, limit)
    report = dataset.report
    refused = None
    skipped = [reason for part in report.sources for _, reason in part.skipped]
    if skipped and recipe.on_bad_row == "raise":
        refused = f"{skipped[0]} Mend the row, or give on_bad_row: skip."
    try:
        check_rows(dataset)
    except DataError as error:
        refused = str(error)
    number = _source_number(report, source)
    return Inspection(report, refused, _row(dataset, report, tokenizer, number, row))


def _source_number(report: DataReport, name: str | None) -> int:
    names = [source.name for source in report.sources]
    if name is None:
        return 0
    if name not in names:
        raise ConfigError(f"there is no source {name!r}: the sources are {', '.join(map(repr, names))}.")
    return names.index(name)


def _row(
    dataset: CollieDatasetForTraining, report: DataReport, tokenizer: Any, number: int, row: int | None
) -> InspectedRow:
    part, source = dataset.parts[number], report.sources[number]
    skipped = dict(source.skipped)
    if row is None:
        row = next(place for place in range(source.usable + len(skipped)) if place not in skipped)
    if row in skipped:
        return InspectedRow(source.name, row, reason=skipped[row])
    place = row - sum(index < row for index in skipped)  # in the table, which has the others
    if not 0 <= place < source.usable:
        raise DataError(f"{source.name} has no row {row}: {source.usable + len(skipped)} were looked at, from 0.")
    tokens = part.table.row(place)
    ids = tuple(tokens["input_ids"])
    trained = tuple(label != -100 for label in tokens["labels"])
    texts = tuple(token_texts(tokenizer, ids))
    return InspectedRow(source.name, row, ids, texts, trained, int(part.table.uncut[place]))


def token_texts(tokenizer: Any, ids: tuple[int, ...]) -> list[str]:
    """What each token adds to the text of those before it: single tokens lose their spaces where decoded alone.

    A character of several tokens comes with its last one.
    """
    texts, start, shown = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, now = _decoded(tokenizer, ids[start:shown]), _decoded(tokenizer, ids[start:end])
        if now.endswith("\ufffd") and end < len(ids) and end - shown < 4:  # a character that is not whole
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, shown = max(0, end - 1), end
    return texts


def _decoded(tokenizer: Any, ids: tuple[int, ...]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
