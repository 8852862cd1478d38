"""One background thread that feeds the sinks of a job, shared by all of its monitors."""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from collie.config import CollieConfig
from collie.utils.monitor._sinks import Sink, make_sinks

_log = logging.getLogger("collie.monitor")


class _Row(NamedTuple):
    name: str
    value: float
    step: int | None


class Outlet:
    """Takes numbers without ever waiting: a thread, started by the first one, hands them to the sinks.

    Attributes:
        dropped: numbers that came while `capacity` of them were waiting.
        failures: numbers that a sink did not take; the first is logged.
    """

    def __init__(self, sinks: list[Sink], tag: str = "", *, capacity: int = 4096) -> None:
        self.dropped = 0
        self.failures = 0
        self._sinks = sinks
        self._prefix = f"{tag}/" if tag else ""
        self._rows: queue.Queue[_Row | None] = queue.Queue(capacity)
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._closed = False

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
        if self._closed:
            self.dropped += 1
            return
        try:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="collie-monitor", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._rows.put_nowait(_Row(self._prefix + name, value, step))
        except queue.Full:
            self.dropped += 1

    def close(self, timeout: float = 5.0) -> None:
        """Hand over what is queued and close the sinks; give up after `timeout` seconds. Later numbers are dropped."""
        if self._pid != os.getpid() or self._closed:
            return
        self._closed = True
        if self._thread is None:
            return
        atexit.unregister(self.close)
        try:
            self._rows.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _run(self) -> None:
        while (row := self._rows.get()) is not None:
            for sink in self._sinks:
                try:
                    sink.write(*row)
                except Exception as error:  # a full disk or a lost network must not reach the training
                    self._count(sink, error)
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                self._count(sink, error)

    def _count(self, sink: Sink, error: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            _log.warning("%s did not take a number: %s", type(sink).__name__, error)

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return self._closed


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
