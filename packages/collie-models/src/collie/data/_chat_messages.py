"""From rows to conversations: OpenAI's messages in the form that chat templates take, and which turns are trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from collie.interfaces import DataError

TrainOn = Literal["all", "last"] | tuple[int, ...]

_FLAGS = ("train", "weight")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as a template takes them.

    turns: for each turn (a message of the assistant), in order, the index of its message. untrained: numbers of the
    turns whose own message says that they are no targets.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    turns: list[int]
    untrained: frozenset[int]

    def chosen(self, train_on: TrainOn) -> list[int]:
        """Numbers of the turns to train, in order.

        Raises DataError: there is none.
        """
        count = len(self.turns)
        if not count:
            raise DataError("no message has the role 'assistant': there is no turn to train on.")
        if train_on == "all":
            numbers = set(range(count))
        elif train_on == "last":
            numbers = {count - 1}
        else:
            numbers = {number % count for number in train_on if -count <= number < count}
        if not numbers:
            have = "1 assistant turn" if count == 1 else f"{count} assistant turns"
            raise DataError(f"train_on={list(train_on)} names none of its turns: it has {have}, counted from 0.")
        if not numbers - self.untrained:
            raise DataError(
                "every turn that train_on chooses says 'train': false or 'weight': 0: leave the row out, or the flag."
            )
        return sorted(numbers - self.untrained)


def conversation(row: Mapping[str, Any]) -> Conversation:
    """Read a row {"messages": [...], "tools": [...] | None} of OpenAI's form.

    None stands for a missing key. A content of text parts becomes one string, with nothing between the parts. The
    arguments of tool calls, a JSON string in OpenAI's form, become the mapping that templates write as JSON again.

    Raises DataError: what is no message, or holds what a text model cannot read.
    """
    raw = row.get("messages")
    if isinstance(raw, str | Mapping) or not isinstance(raw, Sequence) or not len(raw):
        raise DataError("'messages' is no list of messages: [{'role': …, 'content': …}, …] is needed.")
    messages: list[dict[str, Any]] = []
    turns: list[int] = []
    untrained: set[int] = set()
    for index, message in enumerate(raw):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"message {index} is no dict with a 'role': {str(message)[:60]!r}.")
        trained = _flag(message, index)
        if message["role"] == "assistant":
            if trained is False:
                untrained.add(len(turns))
            turns.append(index)
        elif trained:
            raise DataError(
                f"message {index} of the role {message['role']!r} is marked to be trained: "
                "only turns of the assistant are."
            )
        messages.append(_plain(message, index))
    return Conversation(messages, _tools(row.get("tools")), turns, frozenset(untrained))


def _flag(message: Mapping[str, Any], index: int) -> bool | None:
    """Whether the message itself says that it is trained, by "train" or, in OpenAI's form, by "weight"."""
    found = {name: message[name] for name in _FLAGS if message.get(name) is not None}
    for name, value in found.items():
        if value not in (0, 1):
            raise DataError(f"message {index} has {name}={value!r}: 0 or 1 (false or true) is needed.")
    return all(found.values()) if found else None


def _plain(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    plain = {key: value for key, value in message.items() if value is not None and key not in _FLAGS}
    if "content" in plain:
        plain["content"] = _text(plain["content"], index)
    else:
        plain["content"] = ""  # a turn of tool calls alone; templates ask for the key
    calls = plain.pop("tool_calls", None)
    if calls:
        plain["tool_calls"] = [_call(call, index) for call in calls]
    return plain


def _text(content: Any, index: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise DataError(f"the content of message {index} is a {type(content).__name__}: a string is needed.")
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise DataError(f"message {index} has a part of the type {kind!r}: only text can be trained on.")
        parts.append(text)
    return "".join(parts)


def _call(call: Any, index: int) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise DataError(f"a tool call of message {index} is no dict: {str(call)[:60]!r}.")
    plain = {key: value for key, value in call.items() if value is not None}
    function = plain.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"a tool call of message {index} has no function with a name: {str(call)[:60]!r}.")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except json.JSONDecodeError as error:
            raise DataError(
                f"the arguments of {function['name']!r}, which message {index} calls, are no JSON ({error})."
            ) from None
    plain["function"] = {**function, "arguments": {} if arguments is None else arguments}
    return plain


def _tools(tools: Any) -> list[Any] | None:
    """The tools' JSON schemas; a column of them is often one JSON string, since tables want one type."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except json.JSONDecodeError as error:
            raise DataError(f"'tools' is no JSON ({error}): a list of JSON schemas is needed.") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"'tools' is no list of JSON schemas: {str(tools)[:60]!r}.")
    return tools
