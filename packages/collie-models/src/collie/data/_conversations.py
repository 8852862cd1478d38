"""ShareGPT's turns as messages of OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from collie.interfaces import DataError

_ROLES: Mapping[str, str] = MappingProxyType(
    {  # what data sets in ShareGPT's form call a speaker
        "system": "system",
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "bing": "assistant",
        "bard": "assistant",
        "model": "assistant",
        "assistant": "assistant",
        "function_call": "assistant",  # its value is the call, in JSON
        "tool": "tool",
        "function": "tool",
        "observation": "tool",
        "function_response": "tool",
    }
)


def sharegpt_messages(value: Any, index: int) -> list[dict[str, Any]]:
    """ShareGPT's turns {"from", "value"} as messages. Turns that are messages already are taken as such.

    What else a turn carries goes with it. Raises DataError: no list of dicts, an empty one, a turn without the two
    keys, or a speaker that is not known.
    """
    turns = messages(value, "conversations", index)
    if all("role" in turn for turn in turns):
        return [dict(turn) for turn in turns]
    return [_message(turn, number, index) for number, turn in enumerate(turns)]


def messages(value: Any, name: str, index: int) -> Sequence[Mapping[str, Any]]:
    """A row's list of dicts, or that as a JSON text: a CSV file has no other way to hold one.

    Raises DataError: something else, or an empty list.
    """
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{name!r} of row {index} is text that is no JSON: {error.msg}.") from error
    if not isinstance(value, Sequence) or not all(isinstance(each, Mapping) for each in value):
        raise DataError(
            f"{name!r} of row {index} is a {type(value).__name__} ({str(value)[:40]!r}): a list of dicts is needed."
        )
    if not value:
        raise DataError(f"{name!r} of row {index} is empty: a conversation has at least one turn.")
    return value


def _message(turn: Mapping[str, Any], number: int, index: int) -> dict[str, Any]:
    speaker, text = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or not isinstance(text, str):
        raise DataError(
            f"turn {number} of row {index} has the keys {sorted(map(str, turn))}: "
            "two strings, 'from' and 'value', are needed."
        )
    role = _ROLES.get(speaker.lower())
    if role is None:
        raise DataError(f"turn {number} of row {index} is from {speaker!r}: known are {', '.join(_ROLES)}.")
    others = {name: field for name, field in turn.items() if name not in ("from", "value")}
    if speaker.lower() == "function_call":
        return {"role": role, "content": "", "tool_calls": _calls(text, number, index), **others}
    return {"role": role, "content": text, **others}


def _calls(text: str, number: int, index: int) -> list[dict[str, Any]]:
    """One call {"name", "arguments"} or a list of them."""
    try:
        calls = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"turn {number} of row {index} is a function_call that is no JSON: {error.msg}.") from error
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise DataError(f"turn {number} of row {index} is a function_call without a name: {text[:40]!r}.")
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
        for call in calls
    ]
