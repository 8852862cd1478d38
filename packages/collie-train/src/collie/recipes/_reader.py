"""From a YAML file to a recipe: a dataclass says which keys there are, and of which types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from collie.interfaces import ConfigError, nearest

T = TypeVar("T")

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "nothing"}


def read_recipe(path: str | Path, kind: type[T]) -> T:
    """The recipe in a YAML file, as the dataclass `kind`.

    Fields are what get_type_hints says of them: str, int, float, bool, None, Literal, unions of these, mappings,
    tuples and dataclasses of the same sort. So a larger recipe inherits the fields of a smaller one, or has it
    as a section.

    Raises ConfigError: no such file, no YAML, an unknown key (with the nearest known one), a missing one, or a value
    of another type, each by its place in the file.
    """
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: give the name of a recipe, a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    try:
        return _section(kind, {} if values is None else values, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _section(kind: type[T], values: Any, place: str) -> T:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place or 'the recipe'} is {_told(values)}: names and values are needed.")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = nearest(str(name), known)
            hint = f"Did you mean {near!r}?" if near else f"There are {', '.join(known)}."
            raise ConfigError(f"{_below(place, name)} is no key of a recipe. {hint}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{_below(place, name)} is missing.")
    return kind(**{str(name): _value(hints[name], value, _below(place, name)) for name, value in values.items()})


def _value(hint: Any, value: Any, place: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return _section(hint, value, place)
    for choice in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if get_origin(choice) is tuple and isinstance(value, list):
            inner = get_args(choice)[0]
            return tuple(_value(inner, item, f"{place}[{number}]") for number, item in enumerate(value))
        if _fits(choice, value):
            return float(value) if choice is float else value
    raise ConfigError(f"{place} is {_told(value)}: {_needed(hint)} is needed.")


def _fits(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if get_origin(hint) is Mapping or get_origin(hint) is dict:
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return hint is Any or type(value) is hint


def _needed(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_needed(choice) for choice in get_args(hint) if choice is not NoneType)
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return "a list"
    return _WORDS.get(hint, "names and values")


def _told(value: Any) -> str:
    return f"{str(value)[:60]!r}" if isinstance(value, str) else f"{str(value)[:60]} (a {type(value).__name__})"


def _below(place: str, name: Any) -> str:
    return f"{place}.{name}" if place else str(name)
