"""Flat names that are imported when they are asked for, with a sentence where their distribution is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from collie._namespace._foreign import check_foreign
from collie._namespace._table import LEAVES, NAMES
from collie.interfaces._errors import MissingExtraError


def resolve(package: str, name: str) -> Any:
    """Return the flat name `name` of `package`: an object of a leaf, a leaf itself, or a package between.

    Raises:
        AttributeError: there is no such name.
        MissingExtraError: the distribution that brings it is not installed.
    """
    qualified = f"{package}.{name}"
    if name in NAMES[package]:
        value = getattr(importlib.import_module(NAMES[package][name]), name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value
    if qualified in LEAVES or qualified in NAMES:
        return importlib.import_module(qualified)
    if name == "__all__":  # `from collie import *` takes what is installed
        return [name for name, leaf in NAMES[package].items() if _is_installed(leaf)]
    if qualified == "collie.__version__":
        from importlib.metadata import version

        return version("collie-config")
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def list_names(package: str) -> list[str]:
    """Return all names of `package` for dir(): what it holds, its flat names, its leaves."""
    prefix = f"{package}."
    leaves = [leaf.removeprefix(prefix).partition(".")[0] for leaf in LEAVES if leaf.startswith(prefix)]
    return sorted({*vars(sys.modules[package]), *NAMES[package], *leaves})


class _LastFinder:
    """Asked for a module when nobody else has found it: says which `pip install` brings a leaf that is not there."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in LEAVES:
            check_foreign(sys.path)
            distribution = LEAVES[fullname]
            raise MissingExtraError(f"{fullname} needs {distribution}: pip install {distribution}", name=fullname)
        return None


def tell_what_is_missing() -> None:
    """Have imports of a leaf whose distribution is not installed end in the sentence that says what to install."""
    if not any(isinstance(finder, type) and finder.__name__ == _LastFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(_LastFinder)


def _is_installed(leaf: str) -> bool:
    try:
        return importlib.util.find_spec(leaf) is not None
    except ImportError:
        return False
