"""One at a time may give a run a new supervisor, and only whose run it is."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from collie.events import RunFolder
from collie.interfaces import ConfigError

_FILE = "claim.lock"


@contextlib.contextmanager
def claimed(run: RunFolder) -> Iterator[None]:
    """Keep others from resuming or adopting `run` meanwhile; the kernel gives it back, however this process ends.

    What job.json says is about to be executed, so it must be this user's own.

    Raises:
        ConfigError: another process has claimed the run, or it belongs to another user.
    """
    if os.stat(run.path).st_uid != os.getuid():
        raise ConfigError(f"{run.id} is another user's: only who started it can resume or adopt it.")
    descriptor = os.open(run.path / _FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{run.id} is being resumed or adopted by another process.") from None
        yield
    finally:
        os.close(descriptor)
