"""Other projects on the package index ship a package of the same name. Theirs and ours overwrite each other's files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from collie.interfaces._errors import ForeignPackageError

_INSTALLED = re.compile(r"(collie(?:[-_.]\w+)?)-\d[^-]*(?:-py[\d.]+)?\.(?:dist-info|egg-info)", re.IGNORECASE)
FOREIGN = ("collie", "collie-bench", "collie-lm")
OURS = ("collie-config", "collie-models", "collie-train", "collie-eval", "collie-tui")


def check_foreign(folders: Iterable[str]) -> None:
    """Look for a distribution that ships another `collie`, among those installed in `folders` (of sys.path).

    Looks at folder names only: importlib.metadata alone would take a fifth of the time that an import may.

    Raises:
        ForeignPackageError: there is one; the message has the command that mends it.
    """
    found: set[str] = set()
    for folder in dict.fromkeys(folders):
        try:
            entries = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in entries:
            if entry[:6].lower() == "collie" and (match := _INSTALLED.fullmatch(entry)):
                found.add(re.sub(r"[-_.]+", "-", match[1]).lower())
    foreign = [name for name in FOREIGN if name in found]
    if foreign:
        ours = " ".join(name for name in OURS if name in found)
        again = f" && pip install --force-reinstall --no-deps {ours}" if ours else ""
        raise ForeignPackageError(
            f"{' and '.join(foreign)} installed another package called 'collie' over this one: "
            f"pip uninstall -y {' '.join(foreign)}{again}"
        )
