"""Which columns a row may have, and what an encoder takes in their place. A further format is one more object here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collie.data._conversations import messages, sharegpt_messages
from collie.data._rows import check_text
from collie.interfaces import DataError, nearest

Example = Mapping[str, Any]
"""What an encoder takes: {"text"}, {"input", "output"}, {"messages", "tools"} (OpenAI's form), or {"input_ids", …}."""

_ALPACA = (  # Taori et al. 2023, Stanford Alpaca
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write rows.

    name: as the report and `format=` call it.
    columns: what a row of it has at the least.
    over: names of the formats that it stands above where a row has the columns of both.
    example: row, index → what an encoder takes. Raises DataError.
    chat: the same where a chat template was asked for.
    """

    name: str
    columns: frozenset[str]
    example: Callable[[Mapping[str, Any], int], Example]
    chat: Callable[[Mapping[str, Any], int], Example]
    over: tuple[str, ...] = ()

    def needs(self) -> str:
        """Its columns in words: "'input' and 'output'"."""
        return " and ".join(map(repr, sorted(self.columns)))


def _same(row: Mapping[str, Any], index: int) -> Example:
    return row


def _text(row: Mapping[str, Any], index: int) -> Example:
    return {"text": _string(row, "text", index)}


def _pair(row: Mapping[str, Any], index: int) -> Example:
    return {name: _string(row, name, index) for name in ("input", "output") if name in row}


def _pair_as_turns(row: Mapping[str, Any], index: int) -> Example:
    return _turns([], _string(row, "input", index), row, index)


def _alpaca(row: Mapping[str, Any], index: int) -> Example:
    """The text that Stanford Alpaca was trained on; a row's own system text takes the place of its first sentences."""
    if row.get("history"):
        raise DataError(
            f"row {index} has a history of earlier turns, for which Alpaca's text has no place: give chat_template."
        )
    given = _string(row, "input", index) if row.get("input") else ""
    text = _ALPACA.format(
        paired=", paired with an input that provides further context" if given else "",
        instruction=_string(row, "instruction", index),
        input=f"### Input:\n{given}\n\n" if given else "",
    )
    if row.get("system"):
        text = f"{_string(row, 'system', index)}\n\n{text[text.index('### Instruction') :]}"
    return {"input": text, **({"output": _string(row, "output", index)} if "output" in row else {})}


def _alpaca_as_turns(row: Mapping[str, Any], index: int) -> Example:
    """System text, the (question, answer) pairs of the history, then instruction and input a line apart."""
    before = [{"role": "system", "content": _string(row, "system", index)}] if row.get("system") else []
    for pair in row.get("history") or ():
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(
                f"the history of row {index} holds {str(pair)[:40]!r}: a list of [question, answer] is needed."
            )
        before += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = _string(row, "instruction", index)
    if row.get("input"):
        question += "\n" + _string(row, "input", index)
    return _turns(before, question, row, index)


def _turns(before: list[dict[str, Any]], question: str, row: Mapping[str, Any], index: int) -> Example:
    answer = [{"role": "assistant", "content": _string(row, "output", index)}] if "output" in row else []
    return {"messages": [*before, {"role": "user", "content": question}, *answer], "tools": None}


def _sharegpt(row: Mapping[str, Any], index: int) -> Example:
    system = [{"role": "system", "content": _string(row, "system", index)}] if row.get("system") else []
    turns = sharegpt_messages(row["conversations"], index)
    return {"messages": [*system, *turns], "tools": row.get("tools")}


def _messages(row: Mapping[str, Any], index: int) -> Example:
    return {"messages": messages(row["messages"], "messages", index), "tools": row.get("tools")}


def _string(row: Mapping[str, Any], name: str, index: int) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise DataError(
            f"{name!r} of row {index} is a {type(value).__name__} ({str(value)[:40]!r}): a string is needed."
        )
    check_text(value, f"{name!r} of row {index}")
    return value


PROCESSED = "input_ids"

FORMATS: tuple[Format, ...] = (
    Format("text", frozenset({"text"}), _text, _text),
    Format("input/output", frozenset({"input", "output"}), _pair, _pair_as_turns, over=("text",)),
    Format("alpaca", frozenset({"instruction", "output"}), _alpaca, _alpaca_as_turns, over=("text", "input/output")),
    Format("sharegpt", frozenset({"conversations"}), _sharegpt, _sharegpt, over=("text",)),
    Format("messages", frozenset({"messages"}), _messages, _messages, over=("text",)),
    Format(
        PROCESSED,
        frozenset({"input_ids"}),
        _same,
        _same,
        over=("text", "input/output", "alpaca", "sharegpt", "messages"),
    ),
)


class Formats:
    """A table of formats, and which of them a row has.

    formats: the table. forced: the name of the one that every row has to be of; None finds it by columns.

    Raises DataError: `forced` is no name of the table.
    """

    def __init__(self, formats: Sequence[Format] = FORMATS, forced: str | None = None) -> None:
        names = {format.name: format for format in formats}
        if forced is not None and forced not in names:
            near = nearest(forced, names)
            raise DataError(
                f"format={forced!r} is no format{f': is it {near!r}?' if near else '.'} "
                f"Known are {', '.join(map(repr, names))}."
            )
        self.formats = tuple(formats) if forced is None else (names[forced],)
        self._found: dict[frozenset[str], Format | None] = {}

    def of(self, row: Any, index: int) -> Format:
        """The format of row `index`. Columns that are None count only where the others alone are of no format.

        Raises DataError: no mapping, columns of no format, or of several of which none stands above the others.
        """
        if not isinstance(row, Mapping):
            raise DataError(f"row {index} is a {type(row).__name__}, not a dict: {self._needed()}.")
        # rows of a table with a column for each format, None where it is not the row's, are common
        filled = frozenset(name for name, value in row.items() if value is not None)
        found = self._by_columns(filled, index) or self._by_columns(frozenset(row), index)
        if found is None:
            raise DataError(f"row {index} has the keys {sorted(map(str, row))}: {self._needed()}.")
        return found

    def _by_columns(self, columns: frozenset[str], index: int) -> Format | None:
        if columns in self._found:
            return self._found[columns]
        fitting = [format for format in self.formats if format.columns <= columns]
        below = {name for format in fitting for name in format.over}
        first = [format for format in fitting if format.name not in below]
        if len(first) > 1:
            names = " or ".join(repr(format.name) for format in first)
            raise DataError(
                f"row {index} has the keys {sorted(map(str, columns))}, which may be {names}: say which, "
                f"with Source(data, format={first[0].name!r})."
            )
        return self._found.setdefault(columns, first[0] if first else None)

    def _needed(self) -> str:
        needs = [format.needs() for format in self.formats]
        return f"a row needs {', or '.join(needs)}"
