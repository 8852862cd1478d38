"""Fixtures of the collie-train tests."""

import importlib
import os
import sys
from pathlib import Path

import pytest

from collie.testing import run_ranks

sys.path.insert(0, str(Path(__file__).parent))  # toy_training, which several files share

# tokenizers that used their threads here print a warning in each forked rank, unless they are told that this is known
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _tokens(tmp_path_factory):
    """What tests tokenise is not kept in the user's own cache."""
    os.environ["COLLIE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def warm_parent():
    """Ranks are forked from a process that has imported what they need."""
    importlib.import_module("warm").warm()


@pytest.fixture(scope="session")
def ranks():
    """`ranks(n, function, *args)`: the results of `function` in n forked gloo ranks, in rank order."""
    return run_ranks
