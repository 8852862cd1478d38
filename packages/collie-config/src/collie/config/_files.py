"""Reads and writes mappings as JSON or YAML."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collie.interfaces import ConfigError

_JSON = frozenset({".json"})
_YAML = frozenset({".yaml", ".yml"})


def read_mapping(path: Path, field: str, suffixes: frozenset[str] | None = _JSON | _YAML) -> dict[str, Any]:
    """Return the mapping in a file: JSON by the suffix .json, else YAML. `field` is what named the file, for errors.

    Raises:
        ConfigError: the file is missing, unreadable, of another suffix than `suffixes`, or holds no mapping.
    """
    if suffixes is not None and path.suffix.lower() not in suffixes:
        raise ConfigError(f"{field}={str(path)!r} has the suffix {path.suffix!r}. Use one of .json, .yaml, .yml.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{field}={str(path)!r} does not exist. Give the name of a JSON or YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{field}={str(path)!r} cannot be read: {error}. Give a JSON or YAML file.") from error
    kind = "JSON" if path.suffix.lower() in _JSON else "YAML"
    try:
        values = json.loads(text) if kind == "JSON" else _parse_yaml(text)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{field}={str(path)!r} is not valid {kind}: {reason}. Mend the file.") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{field}={str(path)!r} holds a {type(values).__name__}. Write names and values in it.")
    for name in values:
        if not isinstance(name, str):
            raise ConfigError(f"{field}={str(path)!r} has the name {name!r}, which is not a string. Put it in quotes.")
    return values


def write_mapping(path: Path, values: Mapping[str, Any], field: str = "path") -> None:
    """Write a mapping as JSON or YAML, by the suffix; make the folders above.

    Raises:
        ConfigError: the suffix is another.
    """
    suffix = path.suffix.lower()
    plain_values = plain(values)
    if suffix in _JSON:
        text = json.dumps(plain_values, ensure_ascii=False, indent=2) + "\n"
    elif suffix in _YAML:
        import yaml

        text = yaml.safe_dump(plain_values, sort_keys=False, allow_unicode=True)
    else:
        raise ConfigError(f"{field}={str(path)!r} has the suffix {path.suffix!r}. Use one of .json, .yaml, .yml.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def plain(value: Any) -> Any:
    """Return `value` in the types that JSON has: sets become sorted lists, enums their values, other objects text."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


def _parse_yaml(text: str) -> Any:
    import yaml  # 20 ms, and a configuration made in code never needs it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
