"""Trainings on two ranks that are killed by SIGKILL at random moments, and resumed until they end.

Their losses, at every step and in every attempt, and their last weights must be bitwise those of a run left alone.
Half of the kills fall at a random moment of the training, half while a checkpoint is being written.

    python killed_runs.py --kills 20
"""

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from resuming import NoisyRows, adamw, trainer_for
from toy_training import snapshot
from warm import warm

from collie.callbacks import Callback
from collie.testing import RankError, run_ranks

CONFIG = {"stage": 1, "micro": 1, "dropout": 0.2, "train_epochs": 8, "dataloader_num_workers": 1}  # 40 steps
SAVE_EVERY = 4  # steps
_TIMEOUT = 120.0  # seconds for one attempt


@dataclass
class Kill:
    """When an attempt is ended: `seconds` after its first step begins, or after its n-th checkpoint is begun."""

    seconds: float
    after_checkpoint: int | None = None


@dataclass
class Tally:
    """What came of the attempts at one or several trainings."""

    kills: collections.Counter = field(default_factory=collections.Counter)  # by where they fell
    steps: list[int] = field(default_factory=list)  # after which step
    attempts: int = 0
    trainings: int = 0
    compared: int = 0  # losses
    resumed: int = 0  # attempts that began after a checkpoint


class Diary(Callback):
    """Writes each loss to a file at once, saves checkpoints, and lets rank 0 kill all ranks when its time has come."""

    def __init__(self, folder, kill):
        self.root, self.folder, self.kill = folder, folder / "checkpoints", kill
        self.begun = threading.Event()

    @property
    def checkpoint_folder(self):
        return str(self.folder)

    def on_train_begin(self, trainer):
        self.file = open(self.root / f"rank-{trainer.topology.rank}.txt", "a")  # noqa: SIM115  # until the kill
        if trainer.topology.rank == 0:
            with open(self.root / "begun.txt", "a") as file:
                print(trainer.global_batch_idx, file=file)
        processes = [None] * trainer.topology.world_size
        dist.all_gather_object(processes, os.getpid())
        if self.kill is not None and trainer.topology.rank == 0:
            threading.Thread(target=self._strike, args=(processes,), daemon=True).start()

    def on_train_batch_begin(self, trainer, batch):
        self.begun.set()

    def on_train_batch_end(self, trainer, loss):
        print(trainer.global_batch_idx, loss.item().hex(), file=self.file, flush=True)
        if (trainer.global_batch_idx + 1) % SAVE_EVERY == 0:
            trainer.save_checkpoint(self.folder / f"step-{trainer.global_batch_idx}", wait=False)

    def _strike(self, processes):
        self.begun.wait()
        if self.kill.after_checkpoint is not None:
            self._await_checkpoint(self.kill.after_checkpoint)
        time.sleep(self.kill.seconds)
        for process in reversed(processes):  # this one last
            os.kill(process, signal.SIGKILL)

    def _await_checkpoint(self, number):
        seen = set()
        while len(seen) < number:
            seen.update(path.name for path in self.folder.glob(".*.partial.*"))
            time.sleep(0.0005)


def attempt(folder, kill):
    """Train on, from the newest checkpoint there is; return the last weights on rank 0."""
    trainer = trainer_for(adamw, Diary(folder, kill), dtype=torch.bfloat16, dataset=NoisyRows(), **CONFIG)
    trainer.train(resume="auto")
    return snapshot(trainer.model, trainer)


def losses_in(folder):
    """Every loss that was written, by rank and step, as often as it was."""
    found = collections.defaultdict(set)
    for rank in range(2):
        for line in (folder / f"rank-{rank}.txt").read_text().splitlines():
            step, value = line.split()
            found[rank, int(step)].add(value)
    return found


def seconds_of(folder):
    """How long the training in a folder took, from its first step to its last."""
    times = [path.stat().st_mtime for path in (folder / "checkpoints").iterdir()]
    return (max(times) - min(times)) * len(times) / (len(times) - 1)


def last_step(folder):
    lines = (folder / "rank-0.txt").read_text().splitlines() if (folder / "rank-0.txt").exists() else []
    return int(lines[-1].split()[0]) if lines else -1


def train_through(folder, kills, draw, expected, weights, tally):
    """Kill and resume one training until it ends, with at most `kills` kills; compare it with the one left alone."""
    folder.mkdir()
    tally.trainings += 1
    used = 0
    while True:
        tally.attempts += 1
        try:
            results = run_ranks(2, attempt, folder, draw() if used < kills else None, timeout=_TIMEOUT)
            break
        except RankError as error:
            if "SIGKILL" not in str(error):
                raise
        used += 1
        writing = any((folder / "checkpoints").glob(".*.partial.*"))
        tally.kills["while a checkpoint was written" if writing else "between checkpoints"] += 1
        tally.steps.append(last_step(folder))
    begun = [int(line) for line in (folder / "begun.txt").read_text().split()]
    tally.resumed += sum(step >= 0 for step in begun)
    for place, values in losses_in(folder).items():
        assert values == expected[place], f"rank, step {place}: {values}, and left alone {expected[place]}"
        tally.compared += 1
    assert losses_in(folder).keys() == expected.keys()
    for name, tensor in results[0].items():
        assert torch.equal(tensor, weights[name]), f"{name} differs from the run left alone"
    left = [path.name for path in (folder / "checkpoints").glob(".*") if not path.name.endswith(".previous")]
    assert len(left) <= used, left
    return used


def kill_and_resume(folder, kills, seed):
    """Return the tally of so many kills. Raises AssertionError at the first difference."""
    warm()
    chance = random.Random(seed)
    alone = folder / "alone"
    alone.mkdir()
    weights = run_ranks(2, attempt, alone, None, timeout=_TIMEOUT)[0]
    expected = losses_in(alone)
    length = seconds_of(alone)

    def draw():
        if (sum(tally.kills.values())) % 2:
            return Kill(chance.uniform(0, 0.02), after_checkpoint=chance.randint(1, 4))
        return Kill(chance.uniform(0, 0.6 * length))

    tally = Tally()
    while (done := sum(tally.kills.values())) < kills:
        train_through(folder / f"run-{tally.trainings}", kills - done, draw, expected, weights, tally)
    assert tally.resumed, "no attempt found a checkpoint"
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["COLLIE_RUNS"] = f"{folder}/runs"
        began = time.perf_counter()
        tally = kill_and_resume(Path(folder), arguments.kills, arguments.seed)
    print(f"{sum(tally.kills.values())} kills by SIGKILL of 2-rank trainings (seed {arguments.seed}), which fell")
    for where, count in sorted(tally.kills.items()):
        print(f"  {count:3d} {where}")
    print(f"  after the steps {', '.join(map(str, sorted(tally.steps)))} (-1: before the first)")
    seconds = time.perf_counter() - began
    print(f"{tally.trainings} trainings of 40 steps in {tally.attempts} attempts, {seconds:.0f} s;")
    print(f"  {tally.resumed} attempts went on from a checkpoint")
    print(f"{tally.compared} losses and the last weights of each training: bitwise those of the run left alone")


if __name__ == "__main__":
    sys.exit(main())
