"""Where the reference numbers lie: one folder a model, with weights, inputs and the outputs that they must give."""

from __future__ import annotations

import os
import unittest
from pathlib import Path


def goldens_root() -> Path | None:
    """The folder that COLLIE_GOLDENS names, or None where it names none."""
    named = os.environ.get("COLLIE_GOLDENS")
    return Path(named) if named else None


def golden(name: str) -> Path:
    """The folder of one golden case, such as "llama3".

    Raises unittest.SkipTest, which pytest reports as a skip, where no folder is named. A folder or a case that is not
    there is a FileNotFoundError: a misspelled name must not pass as a skip.
    """
    root = goldens_root()
    if root is None:
        raise unittest.SkipTest("no golden numbers here: set COLLIE_GOLDENS to their folder")
    if not (root / name).is_dir():
        there = sorted(path.name for path in root.iterdir()) if root.is_dir() else "no folder"
        raise FileNotFoundError(f"golden {name!r} is not in {root}, which has {there}")
    return root / name
