"""Checks, at its import, that `collie/__init__.py` is ours.

Another project's package of this name may have been installed over it, and then the check in that file never runs. What
is ours imports `collie.interfaces` sooner or later, so one attribute is looked at here.
"""

from __future__ import annotations

import os
import sys

from collie.interfaces._errors import ForeignPackageError


def check_root() -> None:
    """Check that the package `collie` in this process is CoLLiE's.

    Raises:
        ForeignPackageError: it is another project's, or its file is gone; the message has the command that mends it.
    """
    root = sys.modules["collie"]
    if getattr(root, "__distribution__", "") == "collie-config":
        return
    from collie._namespace._foreign import check_foreign

    check_foreign(os.path.dirname(folder) for folder in root.__path__)  # names it, if it is a project that we know
    file = getattr(root, "__file__", None)
    what = f"{file} is another project's file" if file else "the file collie/__init__.py of CoLLiE is missing"
    raise ForeignPackageError(f"{what}: pip install --force-reinstall --no-deps collie-config")


check_root()
