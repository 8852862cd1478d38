"""Signals to a rank in training: what they ask of the run.

| signal | after the next step |
|---|---|
| SIGTERM | a checkpoint, then `train` returns |
| SIGUSR1, SIGUSR2 | a checkpoint; training goes on |

SIGTERM is how torchrun, Slurm and Kubernetes announce an end, and they kill soon after. SIGUSR1 and SIGUSR2 are what
users of Slurm have sent some time before a limit or a preemption (`--signal=USR1@90`): whoever sends it still ends the
job itself, by SIGTERM, so stopping at the warning would only waste what time is left. A rank may get several SIGTERM
for one end, from torchrun and from the scheduler: all of them are the same wish. SIGINT ends the process as ever.
"""

import contextlib
import signal
from types import FrameType, TracebackType
from typing import Any

from collie.controller.trainer._requests import Requests

_MEANING = {
    signal.SIGTERM: Requests(stop=True, checkpoint=True),
    signal.SIGUSR1: Requests(checkpoint=True),
    signal.SIGUSR2: Requests(checkpoint=True),
}


class Signals:
    """Within it, signals are remembered as requests, until `take` hands them over."""

    def __init__(self) -> None:
        self._heard: list[int] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        self._heard = []
        with contextlib.suppress(ValueError):  # not the main thread: the process belongs to somebody else
            for number in _MEANING:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def take(self) -> Requests:
        """Return what was asked since the last call."""
        heard, self._heard = self._heard, []  # one that comes between these two still lands in what is read now
        asked = Requests()
        for number in heard:
            asked |= _MEANING[signal.Signals(number)]
        return asked

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._heard.append(number)
