"""Monitors: what each rank measures around a step, as events, and on rank 0 as csv, tensorboard or wandb."""

from collie.utils.monitor._base import BaseMonitor, MultiMonitors
from collie.utils.monitor._outlet import Outlet, get_monitor
from collie.utils.monitor._resources import (
    CPUMemoryMonitor,
    DiskIOMonitor,
    MemoryMonitor,
    NetworkIOMonitor,
    memory_in_use,
)
from collie.utils.monitor._training import EvalMonitor, LossMonitor, LRMonitor, StepTimeMonitor, TGSMonitor

__all__ = [
    "BaseMonitor",
    "CPUMemoryMonitor",
    "DiskIOMonitor",
    "EvalMonitor",
    "LRMonitor",
    "LossMonitor",
    "MemoryMonitor",
    "MultiMonitors",
    "NetworkIOMonitor",
    "Outlet",
    "StepTimeMonitor",
    "TGSMonitor",
    "get_monitor",
    "memory_in_use",
]
