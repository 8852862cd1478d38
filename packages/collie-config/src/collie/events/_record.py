"""One line of an event file: an envelope and an event, as JSON.

    {"v":"1.0","seq":7,"t":1764000000.123,"rank":0,"attempt":0,"kind":"metric","step":3,"name":"loss","value":2.5,"unit":""}

Floats that JSON has no word for are written as the strings "nan", "inf" and "-inf".
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_args, get_origin, get_type_hints

from collie.events._kinds import Alert, Bye, Checkpoint, Eval, Event, Hello, Log, Metric, Phase, Prompt, Sample, Step

VERSION = "1.0"
MAJOR = VERSION.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Record:
    """One event and its envelope."""

    v: str
    """Version of the format, "major.minor"; a reader accepts any minor."""
    seq: int
    """Position in the writer's sequence, from 0; a number that is missing is an event that was dropped or lost."""
    t: float
    """When it was written, in seconds since the epoch."""
    rank: int
    """Who wrote it."""
    attempt: int
    """How often the job had been restarted before."""
    step: int | None
    """Global step that it belongs to; None where it belongs to none."""
    event: Event
    """What happened."""


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))  # once: dumps makes one a call


def encode(record: Record) -> str:
    """Return the record as one line of JSON, without the newline.

    Raises:
        TypeError: a field holds something that is neither JSON nor a number.
    """
    event = record.event
    line: dict[str, Any] = {
        "v": record.v,
        "seq": record.seq,
        "t": record.t,
        "rank": record.rank,
        "attempt": record.attempt,
        "kind": event.kind,
        "step": record.step,
    }
    for name, (_, required) in _READERS[event.kind].items():
        value = getattr(event, name)
        if required or value != {}:  # an empty map that may be missing is left out
            line[name] = _plain(value)
    return _JSON.encode(line)


def decode(line: str | bytes) -> Record | None:
    """Return the record of one line, or None if its kind is one that this version does not know.

    Unknown fields are ignored, and a field that is missing takes its default.

    Raises:
        ValueError: the line is no record of this major version, lacks a field or has one of another type.
    """
    return parse(line)[1]


def parse(line: str | bytes) -> tuple[int, Record | None]:
    """Like decode, and also return the sequence number, which a line of an unknown kind has too."""
    try:
        values = json.loads(line)
    except RecursionError as error:
        raise ValueError("the line is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("the line is not a JSON object")
    version = _text(values.get("v"))
    if version.partition(".")[0] != MAJOR:
        raise ValueError(f"the line has version {version!r}, this reader knows {MAJOR}.x")
    seq = _whole(values.get("seq"))
    readers = _READERS.get(_text(values.get("kind")))
    if readers is None:
        return seq, None
    arguments = {}
    for name, (read, required) in readers.items():
        if name in values:
            arguments[name] = read(values[name])
        elif required:
            raise ValueError(f"the line lacks {name!r}")
    step = values.get("step")
    return seq, Record(
        v=version,
        seq=seq,
        t=_number(values.get("t")),
        rank=_whole(values.get("rank")),
        attempt=_whole(values.get("attempt")),
        step=None if step is None else _whole(step),
        event=_CLASSES[values["kind"]](**arguments),
    )


def _plain(value: Any) -> Any:
    """Return what JSON can say of `value`; numbers of other packages (a 0-d tensor) become Python's."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(float(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if callable(item := getattr(value, "item", None)):
        number = item()
        if isinstance(number, (bool, int, float)):
            return _plain(number)
    raise TypeError(f"an event cannot hold a {type(value).__name__}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _number(value: Any) -> float:
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("a whole number is too large for a float") from error


_Reader = Callable[[Any], Any]
_SCALARS: dict[Any, _Reader] = {str: _text, int: _whole, bool: _truth, float: _number}


def _reader(hint: Any) -> _Reader:
    """Return the function that checks and converts a field of type `hint`."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    arguments = get_args(hint)
    if get_origin(hint) is dict:
        read_item = _reader(arguments[1])

        def read_map(value: Any) -> dict[str, Any]:
            if not isinstance(value, dict):
                raise ValueError(f"{value!r} is not an object")
            return {key: read_item(item) for key, item in value.items()}

        return read_map
    if type(None) in arguments:
        read_some = _reader(arguments[0])
        return lambda value: None if value is None else read_some(value)
    return _text  # a Literal of strings: a later version may add one


_CLASSES: dict[str, type[Event]] = {
    cls.kind: cls for cls in (Hello, Step, Metric, Eval, Sample, Log, Checkpoint, Alert, Prompt, Phase, Bye)
}


def _readers(cls: type[Event]) -> dict[str, tuple[_Reader, bool]]:
    """Return the reader of each field of an event, and whether the field must be there."""
    hints = get_type_hints(cls)
    return {
        field.name: (_reader(hints[field.name]), field.default is MISSING and field.default_factory is MISSING)
        for field in fields(cls)
    }


_READERS = {kind: _readers(cls) for kind, cls in _CLASSES.items()}
