"""collie-train inspect."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from collie.interfaces import ConfigError
from collie.recipes._data import DataRecipe, SourceRecipe
from collie.recipes._inspection import Inspection, inspect_data
from collie.recipes._reader import read_recipe
from collie.recipes.cli._marks import Marks, shown_row

_OVERRIDES = ("tokenizer", "chat_template", "train_on", "max_length")
_REFUSED = 1


def inspect_command(options: argparse.Namespace) -> int:
    """Print what became of the data; 1 where a run on it would be refused."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its remarks on missing torch parts are not about data
    recipe, folder = _recipe(options)
    found = inspect_data(recipe, folder, row=options.row, source=options.source, limit=options.rows)
    if options.json:
        print(json.dumps(found.as_dict(), ensure_ascii=not _writes_unicode(), indent=2))
    else:
        print(_told(found))
    return _REFUSED if found.refused else 0


def _recipe(options: argparse.Namespace) -> tuple[DataRecipe, Path]:
    """The recipe with what the command line says in its place, and the folder its paths are looked for in."""
    path = Path(options.data)
    if path.suffix.lower() in (".yaml", ".yml"):
        for name in ("format", "split"):
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name} is for a file of rows: in a recipe each source of `data` has its own.")
        recipe, folder = read_recipe(path, DataRecipe), path.parent
    else:
        recipe = DataRecipe(data=(SourceRecipe(path=options.data, split=options.split, format=options.format),))
        folder = Path()
    given = {name: getattr(options, name) for name in _OVERRIDES if getattr(options, name) is not None}
    return dataclasses.replace(recipe, **_from_here(given)), folder


def _from_here(given: dict[str, Any]) -> dict[str, Any]:
    """Paths of the command line are looked for where it runs, not beside the recipe."""
    return {
        name: str(Path(value).absolute())
        if isinstance(value, str) and "{" not in value and Path(value).exists()
        else value
        for name, value in given.items()
    }


def _told(found: Inspection) -> str:
    marks = Marks.for_stream(unicode=_writes_unicode(), colour=_colours())
    lengths = "  ".join(f"{percentile}%: {tokens:,}" for percentile, tokens in found.report.lengths.items())
    parts = [shown_row(found.row, marks), str(found.report), f"tokens a row: {lengths}"]
    if found.refused:
        parts.append(f"A run would be refused: {found.refused}")
    return "\n\n".join(parts)


def _writes_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "gb18030")


def _colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
