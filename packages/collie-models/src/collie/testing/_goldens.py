"""Where the reference numbers lie: one folder a model, with weights, inputs and the outputs that they must give."""

from __future__ import annotations

import os
import unittest
from pathlib import Path


def goldens_root() -> Path:
    """COLLIE_GOLDENS, else the folder `shared/goldens` beside the checkout that the test run stands in."""
    if named := os.environ.get("COLLIE_GOLDENS"):
        return Path(named)
    starts = (Path.cwd().resolve(), Path(__file__).resolve())
    for folder in (parent for start in starts for parent in (start, *start.parents)):
        if (folder / "shared" / "goldens").is_dir():
            return folder / "shared" / "goldens"
    return Path("shared/goldens")


def golden(name: str) -> Path:
    """The folder of one golden case, such as "llama3".

    Raises unittest.SkipTest, which pytest reports as a skip, where the reference numbers are not on this machine.
    A case that is missing from a folder that exists is a FileNotFoundError: a misspelled name must not pass as a skip.
    """
    root = goldens_root()
    if not root.is_dir():
        raise unittest.SkipTest(f"no golden numbers at {root}: set COLLIE_GOLDENS to their folder")
    if not (root / name).is_dir():
        raise FileNotFoundError(f"golden {name!r} is not in {root}, which has {sorted(p.name for p in root.iterdir())}")
    return root / name
