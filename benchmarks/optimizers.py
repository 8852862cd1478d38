"""What each optimizer costs: memory a parameter and time a step, in each way of making a step.

    python benchmarks/optimizers.py [--device cuda] [--hidden 512] [--layers 4] [--rows 4] [--length 64] [--steps 8]

Trains a LLaMA of random weights in bfloat16 with every optimizer in turn: plain, clipped by the norm, in two
micro-batches, on two pipeline stages, on two ranks under ZeRO-3; a global batch has the same rows in all of them.
Prints a Markdown table with two numbers a cell. Bytes a parameter: what lies in the memory of the fullest rank at its
fullest moment, activations of the few tokens included, divided by the whole model's parameters; on CUDA the
allocator's peak, on a CPU all live tensors, looked for whenever a gradient is complete and after the step. Relative
time: the median step's, divided by that of the first optimizer, plain, in the same run. A layout for which there are
not enough GPUs is left out.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.trainer import Trainer
from collie.interfaces import CollieError
from collie.models import CollieModelForCausalLM
from collie.optim import AdaLomo, Adan, Lion, Lomo, SophiaG
from collie.parallel import active_topology, is_partitioned, setup_distribution

WARM_UP = 2
CLIP = 1.0
BUCKET = 2**20  # elements; DeepSpeed's own 5e8 would be most of a small model's memory
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Lomo": lambda model, clip: Lomo(model, lr=1e-3, clip_grad_norm=clip),
    "Lomo, stochastic rounding": lambda model, clip: Lomo(
        model, lr=1e-3, clip_grad_norm=clip, stochastic_rounding=True
    ),
    "AdaLomo": lambda model, clip: AdaLomo(model, lr=1e-3, clip_grad_norm=clip),
    "SGD": lambda model, clip: torch.optim.SGD(model.parameters(), lr=1e-3),
    "Lion": lambda model, clip: Lion(model.parameters(), lr=1e-4),
    "AdamW": lambda model, clip: torch.optim.AdamW(model.parameters(), lr=1e-4),
    "Adan": lambda model, clip: Adan(model.parameters(), lr=1e-4),
    "SophiaG": lambda model, clip: SophiaG(model.parameters(), lr=1e-4),
}
FUSED = ("Lomo", "Lomo, stochastic rounding", "AdaLomo")
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {  # ranks, and fields of the config; the micro-batch's rows follow
    "plain": (1, {}),
    "clip": (1, {}),
    "accumulation": (1, {"gradient_accumulation_steps": 2}),
    "pp 2": (2, {"pp_size": 2, "gradient_accumulation_steps": 4}),
    "ZeRO-3, 2 ranks": (2, {"ds_config": {"zero_optimization": {"stage": 3, "reduce_bucket_size": BUCKET}}}),
}


class Watch(Callback):
    """Times each step, and in the last one looks for the most memory."""

    def __init__(self, model: nn.Module, steps: int, device: torch.device) -> None:
        self.seconds: list[float] = []
        self.bytes = 0
        self._model, self._steps, self._device = model, steps, device
        self._hooks: list[Any] = []

    def on_train_batch_begin(self, trainer: Any, batch: Any) -> None:
        if self._last(trainer, 1):
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)
            else:
                trained = [p for p in self._model.parameters() if p.requires_grad]
                self._hooks = [p.register_post_accumulate_grad_hook(self._look) for p in trained]
        self._wait()
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, loss: Any) -> None:
        self._wait()
        if not self._last(trainer, 0):
            self.seconds.append(time.perf_counter() - self._began)
        elif self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._look()
            for hook in self._hooks:
                hook.remove()

    def _last(self, trainer: Any, ahead: int) -> bool:
        return bool(trainer.global_batch_idx + ahead == self._steps - 1)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _look(self, _: Any = None) -> None:
        self.bytes = max(self.bytes, live_bytes())


def live_bytes() -> int:
    """Bytes of all storages that tensors known to Python, or their gradients, have."""
    sizes = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor) and found.device.type != "meta":
            for tensor in (found, found.grad if found.is_leaf else None):
                if tensor is not None:
                    sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def settings(arguments: argparse.Namespace, layout: str, fused: bool) -> CollieConfig:
    from transformers import LlamaConfig

    ranks, fields = LAYOUTS[layout]
    config = CollieConfig()
    config.model_config = LlamaConfig(
        vocab_size=4 * arguments.hidden, hidden_size=arguments.hidden, intermediate_size=arguments.hidden * 11 // 4,
        num_hidden_layers=arguments.layers, num_attention_heads=arguments.hidden // 64, use_cache=False,
    )  # fmt: skip
    config.train_epochs, config.use_flash, config.checkpointing = 1, arguments.device == "cuda", False
    for name, value in fields.items():
        setattr(config, name, value)
    replicas = ranks // config.pp_size
    config.train_micro_batch_size = arguments.rows // (replicas * config.gradient_accumulation_steps)
    if layout == "clip" and not fused:
        config.ds_config = {**config.deepspeed, "gradient_clipping": CLIP}
    return config


def measure(arguments: argparse.Namespace, layout: str, name: str) -> dict[str, Any]:
    """Train with one optimizer in one layout; return its figures, or why it does not train there."""
    config = settings(arguments, layout, name in FUSED)
    setup_distribution(config)
    device = active_topology().device
    model = CollieModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    steps = WARM_UP + arguments.steps + 1
    ids = torch.randint(3, 4 * arguments.hidden, (arguments.rows * steps, arguments.length))
    data = [{"input_ids": row, "labels": row} for row in ids.tolist()]
    watch = Watch(model, steps, device)
    try:
        made = OPTIMIZERS[name](model, CLIP if layout == "clip" else None)
        trainer = Trainer(model, config, optimizer=made, train_dataset=data, callbacks=[watch])
    except CollieError as error:
        return {"refused": str(error)}
    trainer.train()
    count = sum(p.ds_numel if is_partitioned(p) else p.numel() for p in model.parameters())  # type: ignore[attr-defined]
    figures = torch.tensor([watch.bytes, count if config.pp_size > 1 else 0], dtype=torch.float64)
    fullest, total = figures[:1].clone(), figures[1:].clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(fullest, op=dist.ReduceOp.MAX)
        dist.all_reduce(total)
    return {
        "bytes": fullest.item() / (total.item() or count),
        "seconds": statistics.median(watch.seconds[WARM_UP:]),
    }


def run(layout: str, optimizer: str) -> dict[str, Any]:
    """Train with one optimizer in one layout, in processes of their own: DeepSpeed keeps an engine's buffers."""
    ranks, _ = LAYOUTS[layout]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, __file__, *sys.argv[1:], "--cell", layout, optimizer]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    print(optimizer, layout, line, file=sys.stderr, flush=True)
    figures: dict[str, Any] = json.loads(line)
    return figures


def cell(figures: dict[str, Any], unit: float) -> str:
    if "refused" in figures:
        return "refused"
    return f"{figures['bytes']:.1f} B, {figures['seconds'] / unit:.2f}×"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, default in (("hidden", 512), ("layers", 4), ("rows", 4), ("length", 64), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--only", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS), help="optimizers, Lomo first"
    )
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        gc.freeze()  # what the imports made is not looked at in search of tensors
        figures = measure(arguments, *arguments.cell)
        if int(os.environ.get("RANK", "0")) == 0:
            print(json.dumps(figures), flush=True)
        return
    gpus = torch.cuda.device_count()
    layouts = [name for name, (ranks, _) in LAYOUTS.items() if arguments.device != "cuda" or ranks <= gpus]
    results = {name: {layout: run(layout, name) for layout in layouts} for name in arguments.only}
    unit = results[arguments.only[0]]["plain"]["seconds"]
    print(f"| optimizer | {' | '.join(layouts)} |\n|---|{'---|' * len(layouts)}")
    for name, cells in results.items():
        print(f"| {name} | {' | '.join(cell(cells[layout], unit) for layout in layouts)} |")


if __name__ == "__main__":
    main()
