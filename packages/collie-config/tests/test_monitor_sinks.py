"""csv, tensorboard and wandb on rank 0, off the training thread."""

import csv
import json
import sys
import threading
import time
import types

import pytest

from collie.config import CollieConfig
from collie.events import NullWriter
from collie.interfaces import ConfigError, MissingExtraError, RunContext
from collie.utils.monitor import LossMonitor, MultiMonitors, Outlet, StepTimeMonitor, get_monitor
from collie.utils.monitor._sinks import Sink


def config(tmp_path, **sinks) -> CollieConfig:
    return CollieConfig(ds_config={"monitor_config": {"enabled": True, **sinks}})


def csv_config(tmp_path, **more) -> CollieConfig:
    return config(
        tmp_path, csv_monitor={"enabled": True, "output_path": str(tmp_path / "logs"), "job_name": "job"}, **more
    )


def step(monitor, number, loss):
    with monitor as item:
        item.update(global_step=number, loss=loss)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def context(rank):
    return RunContext(events=NullWriter(), rank=rank, world_size=2, step=lambda: -1)


def test_rank_0_writes_a_table(tmp_path):
    monitor = LossMonitor(csv_config(tmp_path))
    monitor.bind(context(0))
    step(monitor, 0, 2.5)
    step(monitor, 1, float("nan"))
    monitor.monitor.close()
    assert rows(tmp_path / "logs" / "job" / "loss.csv") == [["step", "loss"], ["0", "2.5"], ["1", "nan"]]


@pytest.mark.parametrize("bound", [True, False])
def test_other_ranks_do_not(tmp_path, monkeypatch, bound):
    monitor = LossMonitor(csv_config(tmp_path))
    if bound:
        monitor.bind(context(1))
    else:
        monkeypatch.setenv("RANK", "1")
    step(monitor, 0, 2.5)
    monitor.monitor.close()
    assert not (tmp_path / "logs").exists()


def test_without_a_setting_there_is_no_sink():
    assert get_monitor(CollieConfig()) is None
    monitor = LossMonitor(CollieConfig())
    assert monitor.monitor is None
    step(monitor, 0, 1.0)


def test_monitors_of_one_job_share_an_outlet_and_its_tag_names_the_files(tmp_path):
    settings = csv_config(tmp_path, tag="adan")
    loss, seconds = LossMonitor(settings), StepTimeMonitor(settings)
    assert loss.monitor is seconds.monitor is get_monitor(settings)
    step(loss, 0, 1.0)
    step(seconds, 0, 1.0)
    loss.monitor.close()
    assert sorted(path.name for path in (tmp_path / "logs" / "job").iterdir()) == [
        "adan_loss.csv",
        "adan_step_time.csv",
    ]
    assert get_monitor(settings) is not loss.monitor  # a closed one is not handed out again
    get_monitor(settings).close()


def test_a_second_job_of_that_name_appends(tmp_path):
    for number in range(2):
        monitor = LossMonitor(csv_config(tmp_path))
        step(monitor, number, 1.0)
        monitor.monitor.close()
    assert rows(tmp_path / "logs" / "job" / "loss.csv") == [["step", "loss"], ["0", "1.0"], ["1", "1.0"]]


def test_a_disk_that_refuses_costs_the_numbers_and_nothing_else(tmp_path, caplog):
    (tmp_path / "logs").write_text("a file where the folder should be")
    monitor = LossMonitor(csv_config(tmp_path))
    for number in range(3):
        step(monitor, number, 1.0)
    monitor.monitor.close()
    assert monitor.monitor.failures == 3 and monitor.failures == 0
    assert len([record for record in caplog.records if record.name == "collie.monitor"]) == 1


class Slow(Sink):
    """A sink that takes nothing until it is opened."""

    def __init__(self):
        self.open, self.reached, self.taken = threading.Event(), threading.Event(), []

    def write(self, name, value, step):
        self.reached.set()
        assert self.open.wait(20)
        self.taken.append(step)

    def close(self):
        self.taken.append("closed")


def test_a_slow_sink_never_holds_a_step_up():
    sink = Slow()
    outlet = Outlet([sink], capacity=10)
    outlet.write("loss", 1.0, 0)
    assert sink.reached.wait(10)
    before = time.perf_counter()
    for number in range(1, 100):
        outlet.write("loss", 1.0, number)
    assert time.perf_counter() - before < 1.0
    assert outlet.dropped == 89
    sink.open.set()
    outlet.close()
    assert sink.taken == [*range(11), "closed"]
    outlet.write("loss", 1.0, 100)
    outlet.close()
    assert outlet.dropped == 90


def test_a_sink_that_hangs_does_not_hang_the_end():
    sink = Slow()
    outlet = Outlet([sink], capacity=1)
    outlet.write("loss", 1.0, 0)
    assert sink.reached.wait(10)
    outlet.write("loss", 1.0, 1)
    before = time.perf_counter()
    outlet.close(timeout=0.1)
    assert time.perf_counter() - before < 2.0
    sink.open.set()


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboard.summary"), ("wandb", "wandb")])
def test_a_missing_package_is_named_when_the_monitor_is_made(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        LossMonitor(config(tmp_path, **{name: {"enabled": True}}))
    assert str(caught.value) == f"ds_config's monitor {name} needs {module}: pip install 'collie-config[{name}]'"


def test_a_bad_setting_is_refused_when_the_monitor_is_made():
    with pytest.raises(ConfigError, match="'comet'"):
        LossMonitor(CollieConfig(ds_config={"comet": {"enabled": True}}))


def test_tensorboard_reads_what_was_written(tmp_path):
    """Its own reader finds the scalars at their steps."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = LossMonitor(config(tmp_path, tag="t", tensorboard={"output_path": str(tmp_path / "board")}))
    for number in range(3):
        step(monitor, number, 2.0**-number)
    monitor.monitor.close()
    assert monitor.monitor.failures == 0
    found = EventAccumulator(str(tmp_path / "board" / "t")).Reload()
    tags = found.Tags()
    name = "t/loss"
    values = found.Tensors(name) if name in tags["tensors"] else found.Scalars(name)
    numbers = [value.tensor_proto.float_val[0] if name in tags["tensors"] else value.value for value in values]
    assert [value.step for value in values] == [0, 1, 2] and numbers == [1.0, 0.5, 0.25]


def test_wandb_gets_one_run_with_steps_that_never_go_back(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append("finished")
    )
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: calls.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monitor = LossMonitor(
        config(tmp_path, tag="t", wandb={"enabled": True, "project": "p", "team": "e", "group": None})
    )
    assert calls == []  # no run before there is a number
    for number in (0, 2, 1):
        step(monitor, number, float(number))
    monitor.monitor.close()
    assert calls == [
        {"project": "p", "entity": "e", "name": "t"},
        ({"t/loss": 0.0}, 0),
        ({"t/loss": 2.0}, 2),
        ({"t/loss": 1.0}, 2),
        "finished",
    ]


def test_the_same_wandb_run_goes_on_in_the_same_folder(tmp_path, monkeypatch):
    """Written by wandb itself, offline: two processes' worth of numbers, one id, each with its own numbers."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(name, value)
    run = RunContext(events=NullWriter(), rank=0, world_size=1, step=lambda: -1, folder=str(tmp_path))
    for attempt in range(2):
        monitor = LossMonitor(config(tmp_path, tag="t", wandb={"enabled": True, "project": "p"}))
        monitor.bind(run)
        step(monitor, attempt, 0.5)
        monitor.monitor.close(timeout=60)
        assert monitor.monitor.failures == 0
    wandb.teardown()  # its own process ends, and has written all
    (run_id,) = json.loads((tmp_path / "wandb.json").read_text()).values()
    written = list(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(written) == 2
    assert all(b"t/loss" in file.read_bytes() for file in written)


def test_another_run_is_another_wandb_run(tmp_path, monkeypatch):
    begun = []
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: begun.append(options) or types.SimpleNamespace(log=lambda *a, **k: None, finish=len)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("one", "one", "two"):
        (tmp_path / name).mkdir(exist_ok=True)
        monitor = LossMonitor(config(tmp_path, wandb={"enabled": True}))
        monitor.bind(RunContext(NullWriter(), rank=0, world_size=1, step=lambda: -1, folder=str(tmp_path / name)))
        step(monitor, 0, 1.0)
        monitor.monitor.close()
    assert [options["resume"] for options in begun] == ["allow"] * 3
    assert begun[0]["id"] == begun[1]["id"] != begun[2]["id"]
    resumed = MultiMonitors([LossMonitor(config(tmp_path, wandb={"enabled": True}))])
    (tmp_path / "three").mkdir()
    resumed.bind(RunContext(NullWriter(), rank=0, world_size=1, step=lambda: -1, folder=str(tmp_path / "three")))
    assert resumed.state_dict() == {}
    resumed.load_state_dict({"wandb": begun[0]["id"]})  # from a checkpoint that another run has written
    step(resumed, 0, 1.0)
    resumed.monitors[0].monitor.close()
    assert begun[-1]["id"] == begun[0]["id"] and resumed.state_dict() == {"wandb": begun[0]["id"]}
