"""Monitors of the machine: memory, network, disk."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, ClassVar, NamedTuple

import psutil

from collie.config import CollieConfig
from collie.interfaces import ConfigError, nearest
from collie.utils.monitor._base import BaseMonitor, Item

_PAGE = os.sysconf("SC_PAGE_SIZE")


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


class _TrafficMonitor(BaseMonitor):
    """Rates of two of the machine's counters, since the step before (the first time, since this one began).

    So what happens between steps, such as the loading of data, counts too, and a step reads the counters once.
    """

    _fields: ClassVar[dict[str, str]]
    """The counter of psutil by the name of its rate."""

    def __init__(self, config: CollieConfig) -> None:
        super().__init__(config)
        self._before: tuple[float, Any] | None = None

    def start(self) -> None:
        """Read the counters, if there is no step before."""
        if self._before is None:
            self._before = self._reading()

    def measure(self, item: Item) -> dict[str, float]:
        """Return both rates, in bytes a second; nothing where the system counts none."""
        before, self._before = self._before, self._reading()
        if before is None or self._before is None or self._before[0] <= before[0]:
            return {}
        seconds = self._before[0] - before[0]
        return {
            name: (getattr(self._before[1], field) - getattr(before[1], field)) / seconds
            for name, field in self._fields.items()
        }

    def _reading(self) -> tuple[float, Any] | None:
        counters = self._counters()
        return None if counters is None else (time.perf_counter(), counters)

    def _counters(self) -> Any:
        raise NotImplementedError


# psutil watches for counters that wrap at 32 bits (nowrap), which costs more than reading them: those of a kernel of
# today have 64.


class NetworkIOMonitor(_TrafficMonitor):
    """Bytes a second that this machine sends and receives, on one interface or on all, as network_sent and
    network_received.

    Raises:
        ConfigError: there is no such interface.
    """

    units: ClassVar[dict[str, str]] = {"network_sent": "bytes/s", "network_received": "bytes/s"}
    _fields: ClassVar[dict[str, str]] = {"network_sent": "bytes_sent", "network_received": "bytes_recv"}

    def __init__(self, config: CollieConfig, interface: str | None = None) -> None:
        super().__init__(config)
        self.interface = _known("interface", interface, psutil.net_io_counters(pernic=True))

    def _counters(self) -> Any:
        if self.interface is None:
            return psutil.net_io_counters(nowrap=False)
        return psutil.net_io_counters(pernic=True, nowrap=False).get(self.interface)


class _Bytes(NamedTuple):
    """Bytes of several disks, named as psutil names those of one."""

    read_bytes: int
    write_bytes: int


class DiskIOMonitor(_TrafficMonitor):
    """Bytes a second that this machine reads and writes, on one disk or on all, as disk_read and disk_write.

    Raises:
        ConfigError: there is no such disk.
    """

    units: ClassVar[dict[str, str]] = {"disk_read": "bytes/s", "disk_write": "bytes/s"}
    _fields: ClassVar[dict[str, str]] = {"disk_read": "read_bytes", "disk_write": "write_bytes"}

    def __init__(self, config: CollieConfig, disk: str | None = None) -> None:
        super().__init__(config)
        disks = psutil.disk_io_counters(perdisk=True) or {}
        self.disk = _known("disk", disk, disks)
        # a partition's bytes are its disk's, too; psutil would look at each step which of them are disks
        self._whole = [name for name in disks if os.path.exists(f"/sys/block/{name}")]

    def _counters(self) -> Any:
        if self.disk is None and not self._whole:
            return psutil.disk_io_counters(nowrap=False)
        disks = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        if self.disk is not None:
            return disks.get(self.disk)
        there = [disks[name] for name in self._whole if name in disks]
        return _Bytes(sum(disk.read_bytes for disk in there), sum(disk.write_bytes for disk in there))


def memory_in_use() -> int:
    """Return the peak bytes allocated on the current device so far; this process's resident bytes without one."""
    cuda = _initialised_cuda()
    return int(cuda.max_memory_allocated()) if cuda else _resident_bytes()


def _initialised_cuda() -> Any:
    """Return torch.cuda if this process uses it; neither imports torch nor makes a CUDA context."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:  # what psutil reads on Linux, in a third of the time
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return int(psutil.Process().memory_info().rss)


def _known(field: str, name: str | None, counters: dict[str, Any]) -> str | None:
    if name is not None and name not in counters:
        meant = nearest(name, counters)
        mend = f"Did you mean {meant!r}?" if meant else f"Use one of {', '.join(sorted(counters)) or 'none'}."
        raise ConfigError(f"{field}={name!r} is not on this machine. {mend}")
    return name
