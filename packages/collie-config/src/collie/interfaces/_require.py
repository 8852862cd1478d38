"""Import an optional package at the moment of use, or say what installs it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType

from collie.interfaces._errors import MissingExtraError


def require(module: str, extra: str, why: str = "") -> ModuleType:
    """Import `module`, which the requirement `extra` (for example "collie-models[peft]") brings.

    `why` begins the sentence: the setting that asked for the module, for example "peft_config".

    Raises:
        MissingExtraError: the module, or a package above it, is not installed. A module that is installed but fails on
            an import of its own raises what it raised.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent = error.name or ""
        if module != absent and not module.startswith(absent + "."):
            raise
        reason = f"{why} needs {module}" if why else f"{module} is not installed"
        raise MissingExtraError(f"{reason}: pip install '{extra}'", name=module) from None


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that `name` most likely meant, or None if none is near."""
    import difflib  # 5 ms, and needed only where something is wrong

    matches = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return matches[0] if matches else None
