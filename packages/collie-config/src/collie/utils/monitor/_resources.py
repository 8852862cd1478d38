"""Monitors of the machine: memory, network, disk."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any, ClassVar

import psutil

from collie.config import CollieConfig
from collie.interfaces import ConfigError, nearest
from collie.utils.monitor._base import BaseMonitor, Item


class MemoryMonitor(BaseMonitor):
    """Peak memory allocated on the current device so far, in bytes; resident memory of the process without one."""

    units: ClassVar[dict[str, str]] = {"memory": "bytes"}

    def measure(self, item: Item) -> dict[str, float]:
        """Return {"memory": bytes}."""
        return {"memory": memory_in_use()}


class CPUMemoryMonitor(BaseMonitor):
    """Resident memory of this process, in bytes."""

    units: ClassVar[dict[str, str]] = {"cpu_memory": "bytes"}

    def measure(self, item: Item) -> dict[str, float]:
        """Return {"cpu_memory": bytes}."""
        return {"cpu_memory": _resident_bytes()}


# psutil watches for counters that wrap at 32 bits (nowrap), which costs more than reading them: those of a kernel of
# today have 64.


class NetworkIOMonitor(BaseMonitor):
    """Bytes a second that this machine sent and received during a step, on one interface or on all.

    Raises:
        ConfigError: there is no such interface.
    """

    units: ClassVar[dict[str, str]] = {"network_sent": "bytes/s", "network_received": "bytes/s"}

    def __init__(self, config: CollieConfig, interface: str | None = None) -> None:
        super().__init__(config)
        self.interface = _known("interface", interface, psutil.net_io_counters(pernic=True))

    def start(self) -> None:
        """Read the counters before the step."""
        self._before = self._counters()

    def measure(self, item: Item) -> dict[str, float]:
        """Return {"network_sent": bytes a second, "network_received": bytes a second}."""
        now = self._counters()
        if now is None or self._before is None or self.seconds <= 0:
            return {}
        return {
            "network_sent": (now.bytes_sent - self._before.bytes_sent) / self.seconds,
            "network_received": (now.bytes_recv - self._before.bytes_recv) / self.seconds,
        }

    def _counters(self) -> Any:
        if self.interface is None:
            return psutil.net_io_counters(nowrap=False)
        return psutil.net_io_counters(pernic=True, nowrap=False).get(self.interface)


class DiskIOMonitor(BaseMonitor):
    """Bytes a second that this machine read and wrote during a step, on one disk or on all.

    Raises:
        ConfigError: there is no such disk.
    """

    units: ClassVar[dict[str, str]] = {"disk_read": "bytes/s", "disk_write": "bytes/s"}

    def __init__(self, config: CollieConfig, disk: str | None = None) -> None:
        super().__init__(config)
        self.disk = _known("disk", disk, psutil.disk_io_counters(perdisk=True) or {})

    def start(self) -> None:
        """Read the counters before the step."""
        self._before = self._counters()

    def measure(self, item: Item) -> dict[str, float]:
        """Return {"disk_read": bytes a second, "disk_write": bytes a second}; nothing where the system counts none."""
        now = self._counters()
        if now is None or self._before is None or self.seconds <= 0:
            return {}
        return {
            "disk_read": (now.read_bytes - self._before.read_bytes) / self.seconds,
            "disk_write": (now.write_bytes - self._before.write_bytes) / self.seconds,
        }

    def _counters(self) -> Any:
        if self.disk is None:
            return psutil.disk_io_counters(nowrap=False)
        return (psutil.disk_io_counters(perdisk=True, nowrap=False) or {}).get(self.disk)


def memory_in_use() -> int:
    """Return the peak bytes allocated on the current device so far; this process's resident bytes without one."""
    cuda = _initialised_cuda()
    return int(cuda.max_memory_allocated()) if cuda else _resident_bytes()


def _initialised_cuda() -> Any:
    """Return torch.cuda if this process uses it; neither imports torch nor makes a CUDA context."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def _resident_bytes() -> int:
    return int(_process(os.getpid()).memory_info().rss)


@functools.cache
def _process(pid: int) -> psutil.Process:
    """This process, found once: a forked one has another pid."""
    return psutil.Process(pid)


def _known(field: str, name: str | None, counters: dict[str, Any]) -> str | None:
    if name is not None and name not in counters:
        meant = nearest(name, counters)
        mend = f"Did you mean {meant!r}?" if meant else f"Use one of {', '.join(sorted(counters)) or 'none'}."
        raise ConfigError(f"{field}={name!r} is not on this machine. {mend}")
    return name
