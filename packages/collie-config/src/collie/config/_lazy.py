"""Fields whose default costs seconds to import: made at the first reading, never before."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any


class Unset(enum.Enum):
    """What such a field holds until it is set or read. An enum keeps its identity through copy and pickle."""

    UNSET = enum.auto()

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset.UNSET


class Lazy:
    """A field that is made by `default()` at the first reading.

    A dict that is set there (by a user, or read from a file) stays as it is until the first reading too, and then
    becomes an object by `build(dict)`.
    """

    def __init__(self, default: Callable[[], Any], build: Callable[[Mapping[str, Any]], Any]) -> None:
        self._default = default
        self._build = build

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        if instance is None:
            return UNSET  # what dataclass takes as the field's default
        value = self.raw(instance)
        if value is UNSET:
            value = instance.__dict__[self._name] = self._default()
        elif isinstance(value, Mapping):
            value = instance.__dict__[self._name] = self._build(value)
        return value

    def __set__(self, instance: object, value: Any) -> None:
        instance.__dict__[self._name] = value

    def raw(self, instance: object) -> Any:
        """Return what is stored, without making anything."""
        return instance.__dict__.get(self._name, UNSET)
