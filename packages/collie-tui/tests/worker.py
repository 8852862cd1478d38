"""A rank that trains nothing, and tells of it as the Trainer does: hello, steps, an evaluation, and requests heard."""

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from collie.events import (
    Alert,
    Bye,
    Checkpoint,
    Eval,
    EventWriter,
    Hello,
    Log,
    Prompt,
    RunFolder,
    Sample,
    Step,
    asked_to_resume,
    current_attempt,
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--fail-at", type=int, default=-1)
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--rank", type=int, default=1, help="the rank that something happens to")
    parser.add_argument("--deaf", action="store_true", help="reads no requests")
    parser.add_argument("--stubborn", action="store_true", help="ignores TERM")
    parser.add_argument("--nan-at", type=int, default=-1)
    parser.add_argument("--save-at", type=int, default=-1)
    parser.add_argument("--truthful", action="store_true", help="says hello as the process that it is")
    parser.add_argument("--evaluators", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="has no room for checkpoints")
    parser.add_argument("--silent", action="store_true", help="writes no events")
    parser.add_argument("--leave-child", action="store_true", help="leaves a process behind")
    options = parser.parse_args()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.leave_child:
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        print(f"left {child.pid}", flush=True)
    if options.silent:
        print("no events from here", flush=True)
        time.sleep(options.seconds)
        return 0
    run = RunFolder(Path(os.environ["COLLIE_RUN_DIR"]))
    with EventWriter(run.events, rank, current_attempt()) as events:
        sizes = {"dp": rank, "tp": 0, "pp": 0, "dp_size": world, "tp_size": 1, "pp_size": 1}
        host, start = (socket.gethostname(), psutil.Process().create_time()) if options.truthful else ("here", None)
        events.write(Hello(host, os.getpid(), start, world, **sizes, device="cpu", versions={}))
        if rank == 0 and asked_to_resume():
            print(f"resumed: {asked_to_resume()}", flush=True)
        return _train(options, rank, run, events)


def _train(options: argparse.Namespace, rank: int, run: RunFolder, events: EventWriter) -> int:
    flag = run.path / f"stop-after-{current_attempt()}"
    for step in range(options.steps):  # the index of a step, as the Trainer counts
        time.sleep(options.seconds)
        loss = math.nan if step + 1 == options.nan_at else 3.0 / (step + 1)
        events.write(
            Step(loss, 1e-3, 100, options.seconds, total=options.steps, grad_norm=0.5, memory=2**30),
            step=step,
        )
        if rank == 0 and step + 1 == options.save_at:
            events.write(Checkpoint(f"/checkpoints/step-{step + 1}", 0.5), step=step)
        if rank == options.rank and step + 1 == options.fail_at and not asked_to_resume():
            try:
                raise ValueError("the loss is nan at lr=0.1; use a smaller lr")
            except ValueError as error:
                events.write(Bye("failed", f"ValueError: {error}"), step=step)
                events.close()
                raise
        if rank == options.rank and step + 1 == options.kill_at:
            events.close()
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 0 and not options.deaf:
            _answer(options, run, events, step, flag)
        if flag.exists():
            events.write(Bye("stopped"), step=step)
            return 0
    if rank == 0:
        events.write(Eval("ppl", {"ppl": 1.05}, 0.1, 32), step=options.steps - 1)
        events.write(
            Sample("Collie is a python package for", " finetuning large language models."), step=options.steps - 1
        )
        print("decoded: finetuning large language models.", flush=True)
    events.write(Bye("finished"), step=options.steps - 1)
    return 0


def _answer(options: argparse.Namespace, run: RunFolder, events: EventWriter, step: int, flag: Path) -> None:
    """Do what was asked for, after the step, as rank 0 of a Trainer does."""
    for request in run.pending():
        events.write(Log("info", f"asked to {request.kind} (request {request.id})"))
        if request.kind == "stop":
            flag.touch()
        elif request.kind == "checkpoint" and options.full:
            events.write(Alert("warning", "checkpoint", "no space left on the device"), step=step)
        elif request.kind == "checkpoint":
            events.write(Checkpoint(f"/checkpoints/step-{step + 1}", 0.5, 2**20), step=step)
        elif request.kind == "prompt" and request.arguments.get("temperature") == 9:
            error = "temperature=9 is too hot."
            events.write(Prompt(request.id, "", done=True, error=error), step=step)
        elif request.kind == "prompt":
            told = request.arguments.get("text") or request.arguments["messages"][0]["content"].upper()
            for word in told.split():
                events.write(Prompt(request.id, f"{word} ", done=False), step=step)
            events.write(Prompt(request.id, "end", done=True, tokens=9, seconds=0.5), step=step)
        elif request.kind == "evaluate":
            for name in ("ppl", "decode")[: options.evaluators]:
                events.write(Eval(name, {name: 1.5}, 0.1, 32), step=step)
        run.resolve(request.id)


if __name__ == "__main__":
    sys.exit(main())
