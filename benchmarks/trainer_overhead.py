"""What a step costs in the Trainer itself, and what an event costs.

    python benchmarks/trainer_overhead.py [--steps 2000] [--events 20000]

The step makes no forward pass, no backward pass and no update: a train_fn returns a number. What is left is the loader,
the loop, the callbacks, every monitor, a table of numbers, the events and the progress bar, on one rank. Prints a JSON
line for each figure (the median, and the mean, which has the moments in which other threads write) and its limit, and
one for each monitor alone; ends with status 1 if a median is over its limit.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.trainer import Trainer
from collie.events import EventWriter, Metric
from collie.models import CollieModelForCausalLM
from collie.testing import toy_llama_config
from collie.utils.monitor import (
    BaseMonitor,
    CPUMemoryMonitor,
    DiskIOMonitor,
    EvalMonitor,
    LossMonitor,
    LRMonitor,
    MemoryMonitor,
    NetworkIOMonitor,
    StepTimeMonitor,
    TGSMonitor,
)

STEP_LIMIT = 1e-3  # seconds
EVENT_LIMIT = 50e-6
WARM_UP = 50  # steps
MONITORS = (
    CPUMemoryMonitor,
    DiskIOMonitor,
    EvalMonitor,
    LossMonitor,
    LRMonitor,
    MemoryMonitor,
    NetworkIOMonitor,
    StepTimeMonitor,
    TGSMonitor,
)


class Clock(Callback):
    """When each step began."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_begin(self, trainer: Trainer, batch: Any) -> None:
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)][WARM_UP:]


def config(folder: Path) -> CollieConfig:
    """A small model, and numbers that go into a table, too."""
    made = CollieConfig(train_epochs=1, checkpointing=False, use_flash=False)
    made.model_config = toy_llama_config()
    made.ds_config = {"csv_monitor": {"enabled": True, "output_path": str(folder), "job_name": "overhead"}}
    return made


def step_seconds(steps: int, folder: Path, monitors: tuple[type[BaseMonitor], ...]) -> list[float]:
    """The seconds of each step of a training that trains nothing."""
    settings, clock = config(folder), Clock()
    model = CollieModelForCausalLM.from_config(settings)
    row = {"input_ids": list(range(3, 67)), "labels": list(range(3, 67))}
    trainer = Trainer(
        model,
        settings,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_fn=lambda trainer, batch, global_step: 1.0,
        train_dataset=[row] * (steps + WARM_UP + 1),
        callbacks=clock,
        monitors=[make(settings) for make in monitors],
    )
    trainer.train()
    return clock.seconds


def event_seconds(events: int, folder: Path) -> list[float]:
    """The seconds that each write of an event takes on the thread that trains."""
    taken = []
    with EventWriter(folder, rank=0) as writer:
        for number in range(events):
            began = time.perf_counter()
            writer.write(Metric("loss", 2.5), step=number)
            taken.append(time.perf_counter() - began)
            if number % 100 == 99:
                time.sleep(1e-3)  # a training does not write them in one go
    return taken


def report(what: str, seconds: list[float], limit: float | None) -> bool:
    """Print a figure; return whether it is within its limit."""
    median = statistics.median(seconds)
    line: dict[str, Any] = {"what": what, "median_us": median * 1e6, "mean_us": statistics.mean(seconds) * 1e6}
    if limit is not None:
        line["limit_us"] = limit * 1e6
    print(json.dumps({key: round(value, 1) if isinstance(value, float) else value for key, value in line.items()}))
    return limit is None or median <= limit


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--events", type=int, default=20000)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["COLLIE_RUNS"] = str(folder / "runs")
        fine = report("a step, with every monitor", step_seconds(asked.steps, folder, MONITORS), STEP_LIMIT)
        bare = step_seconds(asked.steps, folder, ())
        report("a step, with none", bare, None)
        for monitor in MONITORS:
            alone = step_seconds(asked.steps // 4, folder, (monitor,))
            more = [max(0.0, seconds - statistics.median(bare)) for seconds in alone]
            report(f"{monitor.__name__} alone, above none", more, None)
        fine &= report("an event", event_seconds(asked.events, folder / "events"), EVENT_LIMIT)
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
