"""What comes from files is judged here, once, before anything is shown: texts, numbers, times, events.

A run folder is data of somebody else: what a model wrote, what an exception said. It may hold escape sequences, numbers
that no float can hold, and a list where a number belongs.
"""

import dataclasses
import math
import re
from typing import Any

from collie.events import Bye, Log, Prompt, Record, Sample, Step

# Escape sequences (colours, cursor moves, titles, also in their one-character C1 forms).
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\x1b[^\x1b\n]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # JSON can hold halves of characters, no terminal can be sent one
_LINES = re.compile(r"\s*\n\s*")
_LARGEST = 2**62  # numbers beyond it count nothing and break arithmetic with floats
_LATEST = 2**34  # seconds since the epoch; calendars end somewhere behind it
_KEEP_LINES = (Sample, Bye, Log, Prompt)


def plain(text: str, *, newlines: bool = False) -> str:
    """A text without escape sequences and control characters; newlines become blanks unless they are wanted."""
    if text.isprintable():
        return text
    text = _CONTROL.sub("", _SEQUENCE.sub("", text.replace("\r\n", "\n")))
    text = _SURROGATE.sub("\ufffd", text)
    return text if newlines else _LINES.sub(" ", text.strip("\n"))


def text_of(value: Any) -> str:
    """A line of text from a file; "" for what is no text."""
    return plain(value) if isinstance(value, str) else ""


def whole_of(value: Any) -> int | None:
    """A whole number from a file, None for what is none or beyond all counting."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    return value if whole else None


def time_of(value: Any) -> float | None:
    """Seconds since the epoch from a file, None for what can be no time."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        return None
    return float(value)


def plain_record(record: Record) -> Record | None:
    """The record with plain texts; None for one whose numbers are beyond all counting."""
    event = record.event
    if not _countable(record.step) or not all(_countable(getattr(event, name)) for name in _names(event)):
        return None
    if isinstance(event, Step):
        return record
    newlines = isinstance(event, _KEEP_LINES)
    changes = {}
    for name in _names(event):
        value = getattr(event, name)
        cleaned = _cleaned(value, newlines)
        if cleaned != value:
            changes[name] = cleaned
    return dataclasses.replace(record, event=dataclasses.replace(event, **changes)) if changes else record


def _names(event: Any) -> tuple[str, ...]:
    return tuple(event.__dataclass_fields__)


def _countable(value: Any) -> bool:
    return not isinstance(value, int) or abs(value) < _LARGEST


def _cleaned(value: Any, newlines: bool) -> Any:
    if isinstance(value, str):
        return plain(value, newlines=newlines)
    if isinstance(value, dict):
        return {plain(key): _cleaned(item, newlines) for key, item in value.items()}
    return value


def drawable(value: float | None) -> bool:
    """Whether a number can be drawn: differences of such numbers are finite as well."""
    return value is not None and math.isfinite(value) and abs(value) < 1e300
