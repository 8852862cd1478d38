"""How fast the Trainer makes steps with LOMO on one device, what memory they take, and where their time goes.

    python benchmarks/train_step.py [--shape 7b] [--settings ckpt:4,ckpt:8,keep:4,keep:6,keep:8]

A setting is `ckpt` (every layer is computed again in the backward pass) or `keep` (its activations are kept), and the
rows of a batch, each of --seq tokens without padding. Weights are random, in bfloat16, and made once. LOMO clips
nothing. Prints JSON lines: the machine and its matmul rate, then for each setting its speed, or that the memory was
too small, and then a summary of one more step by torch.profiler.

Speed is that of the loop as a user runs it, from the end of one step to the end of the last: reading rows, events and
all. Model FLOPs a token are 6·N + 6·layers·hidden·seq, with N all parameters but the embedding, and causal attention
at half. `mfu` is model FLOPs a second by the datasheet's rate (--peak), `share` is the same by the matmul rate of this
run. `peak_gib` is the largest sum of tensors, as torch counts it. It needs neither DeepSpeed nor a network.
"""

import argparse
import gc
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import kernel_trace
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import LlamaConfig

from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.trainer import Trainer
from collie.data import CollieDatasetForTraining
from collie.models import CollieModelForCausalLM, LlamaForCausalLM
from collie.module import attention_backend
from collie.optim.lomo import Lomo
from collie.parallel import materialise, setup_distribution

SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 2},
    "1b": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 16, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
PROFILED = 2  # steps: one in which the profiler gets ready, one that is read


class Watch(Callback):
    """Notes when steps end and what memory they took, and has steps after these profiled."""

    def __init__(self, warm_up: int, measured: int, trace: Path, device: torch.device) -> None:
        self.ends: list[float] = []
        self.peak: int | None = None
        self._first, self._last = warm_up, warm_up + measured
        self._device = device
        self._profiling = False
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=1, active=1, repeat=1),
            on_trace_ready=lambda done: done.export_chrome_trace(str(trace)),
        )

    def on_train_batch_end(self, trainer: Trainer, loss: Tensor) -> None:
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        done = len(self.ends)
        if done == self._first and on_gpu:
            torch.cuda.reset_peak_memory_stats()
        elif done == self._last:
            self.peak = torch.cuda.max_memory_allocated() if on_gpu else None
            self._profiling = True
            self._profile.start()
        elif done > self._last:
            self._profile.step()
        if done == self._last + PROFILED:
            self.close()

    def close(self) -> None:
        """End the profile, also of a step that failed: torch has one at a time."""
        if self._profiling:
            self._profiling = False
            self._profile.stop()

    @property
    def seconds(self) -> list[float]:
        """Of each measured step."""
        ends = self.ends[self._first - 1 : self._last]
        return [end - start for start, end in pairwise(ends)]


def matmul_rate(device: torch.device) -> float:
    """Return the TFLOP/s of a product of square bfloat16 matrices of random numbers, the mean of ten."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        left @ right
    wait()
    started = time.perf_counter()
    for _ in range(10):
        left @ right
    wait()
    return 10 * 2 * size**3 / (time.perf_counter() - started) / 1e12


def make_model(config: CollieConfig) -> CollieModelForCausalLM:
    """A LLaMA with random weights, drawn on the device: `from_config` draws them on the CPU, a minute for 7B."""
    topology = setup_distribution(config)

    def draw(name: str, shape: torch.Size, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        if len(shape) == 1:
            return torch.ones(stop - start, device=topology.device)
        return torch.empty(stop - start, dtype=torch.bfloat16, device=topology.device).normal_(std=0.02)

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    materialise(model, config, topology, torch.bfloat16, draw)
    return model


def flops_per_token(model: CollieModelForCausalLM, seq: int) -> float:
    counted = sum(p.numel() for p in model.parameters()) - model.embed.weight.numel()
    return 6.0 * counted + 6.0 * model.config.num_hidden_layers * model.config.hidden_size * seq


def measure(model: CollieModelForCausalLM, setting: str, arguments: argparse.Namespace, trace: Path) -> dict[str, Any]:
    """Train some steps in one setting; return what was measured. A profile of one more step is left in `trace`."""
    config = model.collie_config
    kind, batch = setting.split(":")
    config.checkpointing, config.train_micro_batch_size = kind == "ckpt", int(batch)
    steps = arguments.warm_up + arguments.steps + PROFILED
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (steps * int(batch), arguments.seq), generator=generator)
    rows = CollieDatasetForTraining([{"input_ids": row} for row in ids.tolist()])
    watch = Watch(arguments.warm_up, arguments.steps, trace, model.device)
    optimizer = Lomo(model, lr=1e-4)
    try:
        trainer = Trainer(model=model, config=config, optimizer=optimizer, train_dataset=rows, callbacks=watch)
        with attention_backend(arguments.attention) if arguments.attention else nullcontext():
            trainer.train()
    finally:
        watch.close()
        optimizer.close()
        model.zero_grad()  # a step that was broken off leaves gradients
    tokens, seconds = int(batch) * arguments.seq, watch.seconds
    return {
        "tokens_per_second": tokens * len(seconds) / sum(seconds),
        "step_s": sum(seconds) / len(seconds),
        "step_s_median": statistics.median(seconds),
        "peak_gib": watch.peak / 2**30 if watch.peak is not None else None,
    }


def report(model: CollieModelForCausalLM, setting: str, arguments: argparse.Namespace, rate: float) -> bool:
    """Print a setting's lines; return whether it could be measured, or only lacked memory."""
    line: dict[str, Any] = {"setting": setting, "seq": arguments.seq}
    with tempfile.TemporaryDirectory(prefix="collie-train-step-") as folder:
        trace = (arguments.traces or Path(folder)) / f"{setting.replace(':', '-')}.json"
        failed: str | None = None
        try:
            line |= measure(model, setting, arguments, trace)
        except torch.OutOfMemoryError:
            failed = "out of memory"
        except Exception as error:  # one setting's failure is a result, and the others are wanted all the same
            failed = f"{type(error).__name__}: {error}"
        if failed is not None:
            say(line | {"failed": failed})
            gc.collect()  # the tensors of the step that was broken off
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
            return failed == "out of memory"
        done = line["tokens_per_second"] * flops_per_token(model, arguments.seq) / 1e12
        mfu = done / arguments.peak if model.device.type == "cuda" else None
        say(line | {"model_tflops": done, "mfu": mfu, "share": done / rate})
        say({"profile_of": setting, **kernel_trace.summarise(trace)})
    return True


class Kept(logging.Handler):
    """Keeps what is logged: which attention kernel was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def say(line: dict[str, Any]) -> None:
    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [short(inner) for inner in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    print(json.dumps(short(line)), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--settings", default="ckpt:4,ckpt:8,keep:4,keep:6,keep:8", help="in this order, by commas")
    parser.add_argument("--seq", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=8, help="that are measured")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before these, at least 1")
    parser.add_argument("--attention", help="only this kernel, instead of the dispatch's choice")
    parser.add_argument("--peak", type=float, default=989.4, help="TFLOP/s of the datasheet, for mfu: an H100's")
    parser.add_argument("--traces", type=Path, help="an existing folder to keep the profiler's traces in")
    arguments = parser.parse_args()
    for setting in arguments.settings.split(","):
        kind, _, batch = setting.partition(":")
        if kind not in ("ckpt", "keep") or not batch.isdigit() or int(batch) < 1:
            parser.error(f"--settings: {setting!r} is not ckpt:ROWS or keep:ROWS")
    if arguments.warm_up < 1 or arguments.steps < 1:
        parser.error("--warm-up and --steps must be at least 1")
    return arguments


def main() -> int:
    arguments = parse()
    kept = Kept()
    logging.getLogger("collie.module").setLevel(logging.DEBUG)
    logging.getLogger("collie.module").addHandler(kept)
    sizes = LlamaConfig(
        vocab_size=32000, max_position_embeddings=max(2048, arguments.seq), tie_word_embeddings=False,
        **SHAPES[arguments.shape],
    )  # fmt: skip
    config = CollieConfig(model_config=sizes, train_epochs=1, ds_config={"bf16": {"enabled": True}})
    device = setup_distribution(config).device
    rate = matmul_rate(device)
    model = make_model(config)
    say({
        "shape": arguments.shape,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_token": flops_per_token(model, arguments.seq),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "matmul_tflops": rate,
    })  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="collie-runs-") as runs:
        os.environ.setdefault("COLLIE_RUNS", runs)
        passed = [report(model, setting, arguments, rate) for setting in arguments.settings.split(",")]
    say({"attention": kept.messages, "matmul_tflops_after": matmul_rate(device)})
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
