"""One background thread that feeds the sinks of a job, shared by all of its monitors."""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from collie.config import CollieConfig
from collie.utils.monitor._sinks import Sink, make_sinks

_PAUSE = 0.1  # seconds in which numbers come together
_log = logging.getLogger("collie.monitor")


class _Row(NamedTuple):
    name: str
    value: float
    step: int | None


class Outlet:
    """Takes numbers without ever waiting: a thread, started by the first one, hands them to the sinks.

    It does so some times a second, so that a step does not wake it with every number.

    Attributes:
        dropped: numbers that came while `capacity` of them were waiting.
        failures: numbers that a sink did not take; the first is logged.
    """

    def __init__(self, sinks: list[Sink], tag: str = "", *, capacity: int = 4096) -> None:
        self.dropped = 0
        self.failures = 0
        self._sinks = sinks
        self._prefix = f"{tag}/" if tag else ""
        self._capacity = capacity
        self._rows: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()  # None ends it
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._closing = threading.Event()

    def bind(self, folder: str | os.PathLike[str]) -> None:
        """Tell the sinks the run's folder."""
        for sink in self._sinks:
            sink.bind(Path(folder))

    def state_dict(self) -> dict[str, str]:
        """What a resumed run needs to go on with what the sinks have begun."""
        return {key: value for sink in self._sinks for key, value in sink.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Let the sinks go on with it; before the first number, or it changes nothing."""
        for sink in self._sinks:
            sink.load_state_dict(state)

    def write(self, name: str, value: float, step: int | None) -> None:
        """Queue one number of the global step `step`."""
        if self._pid != os.getpid():
            return  # a forked process, for example one that loads data
        if self.closed or self._rows.qsize() >= self._capacity:
            self.dropped += 1
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="collie-monitor", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        self._rows.put(_Row(self._prefix + name, value, step))

    def close(self, timeout: float = 5.0) -> None:
        """Hand over what is queued and close the sinks; give up after `timeout` seconds. Later numbers are dropped."""
        if self._pid != os.getpid() or self.closed:
            return
        self._closing.set()
        if self._thread is None:
            return
        atexit.unregister(self.close)
        self._rows.put(None)
        self._thread.join(timeout)

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return self._closing.is_set()

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._rows.get()]
            self._closing.wait(_PAUSE)
            batch += [self._rows.get() for _ in range(self._rows.qsize())]
            ended = None in batch
            for sink in self._sinks:
                for row in batch:
                    if row is not None:
                        self._guarded(sink, sink.write, *row)
                self._guarded(sink, sink.flush)
        for sink in self._sinks:
            self._guarded(sink, sink.close)

    def _guarded(self, sink: Sink, call: Callable[..., None], *arguments: Any) -> None:
        """A full disk or a lost network must not reach the training."""
        try:
            call(*arguments)
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                _log.warning("%s did not take a number: %s", type(sink).__name__, error)


_outlets: dict[tuple[int, str], Outlet] = {}


def get_monitor(config: CollieConfig) -> Outlet | None:
    """Return the outlet to what config.monitor_config enables, the same for equal settings; None where that is nothing.

    Raises:
        ConfigError: ds_config is not readable or asks for an unknown monitor.
        MissingExtraError: a monitor needs a package that is not installed.
    """
    wanted = config.monitor_config
    key = (os.getpid(), json.dumps(wanted, sort_keys=True, default=str))
    outlet = _outlets.get(key)
    if outlet is None or outlet.closed:
        sinks = make_sinks(wanted)
        if not sinks:
            return None
        outlet = _outlets[key] = Outlet(sinks, wanted["tag"])
    return outlet
