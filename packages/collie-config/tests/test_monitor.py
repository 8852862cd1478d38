"""Monitors: what they measure, and where it goes."""

import logging
import math
import sys
import types
from types import SimpleNamespace

import psutil
import pytest

from collie.config import CollieConfig
from collie.events import EventReader, EventWriter, Metric
from collie.interfaces import ConfigError, RunContext
from collie.utils import monitor as module
from collie.utils.monitor import (
    BaseMonitor,
    CPUMemoryMonitor,
    DiskIOMonitor,
    EvalMonitor,
    LossMonitor,
    LRMonitor,
    MemoryMonitor,
    MultiMonitors,
    NetworkIOMonitor,
    StepTimeMonitor,
    TGSMonitor,
)

ITEM = {"global_step": 7, "epoch": 1, "loss": 2.5, "lr": 0.1, "tokens": 600, "world_size": 2, "batch_size": 4}


class Events:
    """An event sink that a test can look into."""

    def __init__(self):
        self.found = []

    def write(self, event, *, step=None):
        self.found.append((event, step))

    def values(self):
        return {event.name: event.value for event, _ in self.found}


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test winds."""
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(module._base.time, "perf_counter", lambda: now.time)
    return now


def context(events, rank=0, step=3):
    return RunContext(events=events, rank=rank, world_size=2, step=lambda: step)


def step(monitor, clock=None, seconds=0.0, **item):
    with monitor as current:
        current.update(ITEM | item)
        if clock:
            clock.time += seconds


def test_a_steps_time_is_from_enter_to_exit(events, clock):
    monitor = StepTimeMonitor(CollieConfig())
    monitor.bind(context(events))
    clock.time += 50  # between two steps: nobody's
    step(monitor, clock, 0.25)
    assert events.found == [(Metric("step_time", 0.25, "s"), 7)]


@pytest.mark.parametrize(("tp", "pp", "tgs"), [(1, 1, 1200.0), (2, 1, 600.0), (2, 3, 200.0)])
def test_tgs_is_tokens_a_gpu_and_second(events, clock, tp, pp, tgs):
    """600 tokens of one replica in half a second, shared by its tp × pp GPUs."""
    monitor = TGSMonitor(CollieConfig(tp_size=tp, pp_size=pp))
    monitor.bind(context(events))
    step(monitor, clock, 0.5)
    assert events.found == [(Metric("tgs", tgs, "tokens/s"), 7)]


def test_loss_and_learning_rate(events):
    for monitor in (LossMonitor(CollieConfig()), LRMonitor(CollieConfig())):
        monitor.bind(context(events))
        step(monitor)
        with monitor as item:
            item["global_step"] = 8  # a rank that knows neither
    assert events.found == [(Metric("loss", 2.5), 7), (Metric("lr", 0.1), 7)]
    assert monitor.failures == 0


class Tensor:
    """Stands for a tensor, which becomes a number only if it has one element."""

    def __init__(self, *values):
        self.values = values

    def __float__(self):
        if len(self.values) != 1:
            raise RuntimeError("a Tensor with several elements cannot be converted to Scalar")
        return float(self.values[0])


def test_evaluations_give_each_number(events):
    """Texts and lists are no numbers; the evaluator's name stands before the metric's."""
    results = {
        "ppl": 1.5,
        "acc#total": 3,
        "t": Tensor(2.5),
        "decode": ["a", "b"],
        "text": "7",
        "ok": True,
        "m": Tensor(1, 2),
    }
    monitor = EvalMonitor(CollieConfig())
    monitor.bind(context(events))
    with monitor as item:
        item.update(eval_result=results, global_step=9)
    with monitor as item:
        item.update(eval_result={"ppl": math.inf}, eval_name="dev", global_step=9)
    assert events.found == [
        (Metric("eval/ppl", 1.5), 9),
        (Metric("eval/acc#total", 3.0), 9),
        (Metric("eval/t", 2.5), 9),
        (Metric("dev/ppl", math.inf), 9),
    ]
    assert monitor.failures == 0


def test_a_training_step_is_no_evaluation(events):
    monitor = EvalMonitor(CollieConfig())
    monitor.bind(context(events))
    step(monitor)
    assert events.found == [] and monitor.failures == 0


def test_the_step_is_the_runs_where_the_item_has_none(events):
    monitor = LossMonitor(CollieConfig())
    monitor.bind(context(events, step=3))
    with monitor as item:
        item["loss"] = 1.0
    assert events.found == [(Metric("loss", 1.0), 3)]


def test_every_rank_writes_events(tmp_path):
    """Through real writers: one file a rank, all with their own numbers."""
    for rank in (0, 1):
        with EventWriter(tmp_path, rank) as writer:
            monitor = LossMonitor(CollieConfig())
            monitor.bind(context(writer, rank))
            step(monitor, loss=float(rank))
    files = sorted(tmp_path.iterdir())
    assert [[r.event for r in EventReader(file).read()] for file in files] == [
        [Metric("loss", 0.0)],
        [Metric("loss", 1.0)],
    ]


def test_unbound_monitors_work_without_events():
    monitor = StepTimeMonitor(CollieConfig())
    step(monitor)
    assert monitor.failures == 0 and monitor.seconds >= 0 and monitor.item["loss"] == 2.5


def cuda(initialised: bool) -> types.ModuleType:
    torch = types.ModuleType("torch")
    torch.cuda = SimpleNamespace(is_initialized=lambda: initialised, max_memory_allocated=lambda: 12345)
    return torch


@pytest.mark.parametrize("used", [True, False, None])
def test_memory_is_the_devices_where_it_is_used(monkeypatch, events, used):
    """Otherwise that of the process; and torch is never imported for it."""
    if used is None:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "torch", cuda(used))
    monitor = MemoryMonitor(CollieConfig())
    monitor.bind(context(events))
    step(monitor)
    ((event, at),) = events.found
    resident = psutil.Process().memory_info().rss
    assert (event.name, event.unit, at) == ("memory", "bytes", 7)
    assert event.value == 12345 if used else abs(event.value - resident) < 0.5 * resident
    assert used is not None or "torch" not in sys.modules


def test_cpu_memory_grows_with_what_is_held(events):
    monitor = CPUMemoryMonitor(CollieConfig())
    monitor.bind(context(events))
    step(monitor)
    held = bytearray(b"x" * (64 << 20))
    step(monitor)
    (before, _), (after, _) = events.found
    assert after.value - before.value > 48 << 20 and len(held)


def counters(monkeypatch, name, each, *readings):
    """Have psutil return one reading after the other."""
    iterator = iter(readings)

    def read(**which):
        return each if which.get("pernic") is True or which.get("perdisk") is True else next(iterator)

    monkeypatch.setattr(psutil, name, read)


def test_network_traffic_is_a_rate(monkeypatch, events, clock):
    first, second = SimpleNamespace(bytes_sent=100, bytes_recv=10), SimpleNamespace(bytes_sent=400, bytes_recv=30)
    counters(monkeypatch, "net_io_counters", {"eth0": first}, first, second)
    monitor = NetworkIOMonitor(CollieConfig())
    monitor.bind(context(events))
    step(monitor, clock, 2.0)
    assert events.values() == {"network_sent": 150.0, "network_received": 10.0}
    assert {event.unit for event, _ in events.found} == {"bytes/s"}


def test_traffic_between_two_steps_counts(monkeypatch, events, clock):
    """Three seconds of loading and one of the step, in which 800 bytes came."""
    readings = [SimpleNamespace(bytes_sent=sent, bytes_recv=0) for sent in (100, 400, 1200)]
    counters(monkeypatch, "net_io_counters", {"eth0": readings[0]}, *readings)
    monitor = NetworkIOMonitor(CollieConfig())
    monitor.bind(context(events))
    step(monitor, clock, 2.0)
    clock.time += 3.0
    step(monitor, clock, 1.0)
    assert events.values()["network_sent"] == 200.0


def test_disk_traffic_is_a_rate_of_one_disk(monkeypatch, events, clock):
    disks = {"sda": SimpleNamespace(read_bytes=0, write_bytes=0), "sdb": SimpleNamespace(read_bytes=9, write_bytes=9)}
    counters(monkeypatch, "disk_io_counters", disks)
    monitor = DiskIOMonitor(CollieConfig(), disk="sda")
    monitor.bind(context(events))
    with monitor:
        clock.time += 2.0
        disks["sda"] = SimpleNamespace(read_bytes=1000, write_bytes=500)
    assert events.values() == {"disk_read": 500.0, "disk_write": 250.0}


def test_disk_traffic_counts_partitions_once(monkeypatch, events, clock):
    """sda1 is a part of sda; which are whole disks, the system says."""
    reading = SimpleNamespace(read_bytes=0, write_bytes=0)
    disks = dict.fromkeys(("sda", "sda1", "sdb"), reading)
    counters(monkeypatch, "disk_io_counters", disks)
    monkeypatch.setattr(module._resources.os.path, "exists", lambda path: path in ("/sys/block/sda", "/sys/block/sdb"))
    monitor = DiskIOMonitor(CollieConfig())
    monitor.bind(context(events))
    with monitor:
        clock.time += 1.0
        disks.update(dict.fromkeys(disks, SimpleNamespace(read_bytes=100, write_bytes=50)))
    assert events.values() == {"disk_read": 200.0, "disk_write": 100.0}


def test_a_machine_without_counters_measures_nothing(monkeypatch, events):
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **which: None)
    monitor = DiskIOMonitor(CollieConfig())
    monitor.bind(context(events))
    step(monitor)
    assert events.found == [] and monitor.failures == 0


@pytest.mark.parametrize(("cls", "field"), [(NetworkIOMonitor, "interface"), (DiskIOMonitor, "disk")])
def test_an_interface_or_disk_that_is_not_there_is_refused(monkeypatch, cls, field):
    monkeypatch.setattr(psutil, "net_io_counters", lambda **which: {"eth0": None})
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **which: {"eth0": None})
    with pytest.raises(ConfigError, match=f"{field}='eht0' is not on this machine. Did you mean 'eth0'?"):
        cls(CollieConfig(), "eht0")


class Broken(BaseMonitor):
    def start(self):
        raise OSError("no counters")

    def measure(self, item):
        raise KeyError("no such thing")


def test_a_broken_monitor_is_counted_and_logged_once(events, caplog):
    monitor = Broken(CollieConfig())
    monitor.bind(context(events))
    with caplog.at_level(logging.WARNING):
        step(monitor)
        step(monitor)
    assert monitor.failures == 4 and events.found == []
    assert [record.getMessage() for record in caplog.records] == ["Broken measured nothing: OSError: no counters"]


def test_an_error_in_the_step_goes_through_and_is_not_measured(events):
    monitor = LossMonitor(CollieConfig())
    monitor.bind(context(events))
    with pytest.raises(ZeroDivisionError), monitor as item:
        item.update(ITEM)
        raise ZeroDivisionError
    assert events.found == []


def test_several_monitors_share_one_item(events, clock):
    monitors = MultiMonitors([LossMonitor(CollieConfig()), StepTimeMonitor(CollieConfig()), TGSMonitor(CollieConfig())])
    monitors.bind(context(events))
    step(monitors, clock, 0.5)
    assert events.values() == {"loss": 2.5, "step_time": 0.5, "tgs": 1200.0}
    with monitors as item:
        assert item == {}  # a new one each step


class Foreign:
    """A user's own context manager, which knows nothing of BaseMonitor."""

    item: dict
    seen = None

    def __enter__(self):
        return {"mine": 1}

    def __exit__(self, *exception):
        self.seen = dict(self.item)


class Worse(Foreign):
    def __enter__(self):
        raise OSError("in")

    def __exit__(self, *exception):
        raise OSError("out")


def test_a_users_own_monitors_are_welcome_and_cannot_hurt(events):
    foreign, loss = Foreign(), LossMonitor(CollieConfig())
    monitors = MultiMonitors([Worse(), foreign, loss])
    monitors.bind(context(events))
    step(monitors)
    assert foreign.seen == ITEM | {"mine": 1} and events.values() == {"loss": 2.5}
    assert monitors.failures == 2
    with pytest.raises(ZeroDivisionError), monitors:
        raise ZeroDivisionError


def test_no_monitors_are_monitors_too():
    with MultiMonitors() as item:
        item.update(ITEM)


def test_all_is_what_is_public():
    assert sorted(module.__all__) == sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("collie.")
    )
