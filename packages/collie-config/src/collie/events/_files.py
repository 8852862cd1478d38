"""Opens what lies in a run folder, which may be anybody's: a pipe or a device in a file's place is never waited for."""

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str], *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading bytes.

    Args:
        path: the file.
        follow: whether a symbolic link will do.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{Path(path)} is no regular file")
    return file
