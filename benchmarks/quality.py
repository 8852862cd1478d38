"""Held-out perplexity by learning rate: LOMO, AdaLomo, AdamW and LoRA on SmolLM2-135M, equal tokens for all.

    python benchmarks/quality.py --model FOLDER --data GSM8K --out FOLDER [--optimizers lomo,adalomo,adamw,lora]
    python benchmarks/quality.py --draw FOLDER

FOLDER of the model is what `benchmarks/smollm2.py` writes; GSM8K has train.jsonl and test.jsonl, with a question and
an answer on each line. Every run begins with the folder's weights in bfloat16, sees the same rows in the same order,
once, with a linear warm-up over a tenth of the steps and a linear decay after it, and no clipping. LOMO and AdaLomo
have no weights but those in bfloat16, and round each update to the nearest; lomo-sr and adalomo-sr round by chance, so
that small updates are not lost. AdamW runs in DeepSpeed, which has the weights in float32, too. LoRA is AdamW on
adapters of rank 16 at all linear layers. Perplexity is that of all tokens of the test texts.

Prints a JSON line a run, adds it to results.jsonl in --out, and writes quality.md and quality.svg of all lines there,
so that a sweep can be made in several calls. An optimizer that is not installed has a line with the reason.
`--shape tiny` needs no model: it makes one with random weights and takes bytes for tokens.
"""

import argparse
import gc
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from smollm2 import blocks, encoder, read_texts
from sweep_plot import svg
from torch import Tensor
from transformers import LlamaConfig, get_linear_schedule_with_warmup

from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.evaluator import EvaluatorForPerplexity
from collie.controller.trainer import Trainer
from collie.data import CollieDatasetForTraining
from collie.interfaces import MissingExtraError, NonFiniteError
from collie.models import CollieModelForCausalLM
from collie.optim import AdaLomo, Lomo
from collie.parallel import close_engine

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adamw(model: CollieModelForCausalLM, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)


def adapters() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM")


@dataclass(frozen=True)
class Method:
    """One way to train, with the learning rates that are tried."""

    name: str
    rates: tuple[float, ...]
    optimizer: Callable[[CollieModelForCausalLM, float], torch.optim.Optimizer]
    peft: Callable[[], Any] | None = None


LOMO_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
ADALOMO_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
METHODS = {
    "lomo": Method("LOMO", LOMO_RATES, Lomo),
    "lomo-sr": Method("LOMO by chance", LOMO_RATES, partial(Lomo, stochastic_rounding=True)),
    "adalomo": Method("AdaLomo", ADALOMO_RATES, AdaLomo),
    "adalomo-sr": Method("AdaLomo by chance", ADALOMO_RATES, partial(AdaLomo, stochastic_rounding=True)),
    "adamw": Method("AdamW", (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), adamw),
    "lora": Method("LoRA", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), adamw, adapters),
}


class Watch(Callback):
    """Keeps every step's loss, and when it ended."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, loss: Tensor) -> None:
        self.losses.append(loss.item())
        self.ends.append(time.perf_counter())


@dataclass(frozen=True)
class Task:
    """What all runs share."""

    model: Path
    train: CollieDatasetForTraining
    held_out: CollieDatasetForTraining
    batch: int
    length: int

    def config(self) -> CollieConfig:
        config = CollieConfig.from_pretrained(self.model)
        config.ds_config = {"bf16": {"enabled": True}}
        config.train_epochs = 1
        config.train_micro_batch_size = self.batch
        config.eval_batch_size = 2 * self.batch
        config.checkpointing = False
        return config

    @property
    def steps(self) -> int:
        return len(self.train) // self.batch


def perplexity(model: CollieModelForCausalLM, config: CollieConfig, task: Task) -> float:
    return EvaluatorForPerplexity(model=model, dataset=task.held_out, config=config).eval()["ppl"]


def run(method: Method, lr: float, task: Task) -> dict[str, Any]:
    """Train once from the folder's weights; return the run's line."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    config = task.config()
    if method.peft is not None:
        config.peft_config = method.peft()
    model = CollieModelForCausalLM.from_pretrained(task.model, config=config)
    optimizer = method.optimizer(model, lr)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    watch = Watch()
    trainer = Trainer(
        model=model,
        config=config,
        optimizer=optimizer,
        lr_scheduler=lambda made: get_linear_schedule_with_warmup(made, task.steps // 10, task.steps),
        train_dataset=task.train,
        callbacks=watch,
    )
    trainer.train()
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    found = perplexity(model, config, task)
    close_engine(model)
    last = watch.losses[-10:]
    spent = watch.ends[-1] - watch.ends[0]
    return {
        "ppl": found,
        "train_loss": sum(last) / len(last),
        "trained_parameters": trained,
        "steps": len(watch.losses),
        "tokens": len(task.train) * task.length,
        "tokens_per_second": (len(watch.losses) - 1) * task.batch * task.length / spent if spent else None,
        "peak_gib": peak,
    }


def attempt(method: Method, lr: float, task: Task) -> dict[str, Any]:
    """Run, or say why there is no result: a package is not there (`skipped`), or the rate was too large (`failed`)."""
    line: dict[str, Any] = {"optimizer": method.name, "lr": lr}
    started = time.perf_counter()
    try:
        line |= run(method, lr, task)
        line["diverged"] = not math.isfinite(line["ppl"])
    except (ImportError, MissingExtraError) as error:
        line["skipped"] = f"{type(error).__name__}: {error}"
    except NonFiniteError as error:  # the others are wanted all the same; any other error is one of this program's
        line["failed"] = f"{type(error).__name__}: {error}"
    gc.collect()
    return line | {"seconds": time.perf_counter() - started}


def table(lines: list[dict[str, Any]], before: float) -> str:
    """The runs as Markdown: a row a learning rate, the lowest perplexity of each optimizer in bold."""
    curves = by_optimizer(lines)
    best = {name: min((v for _, v in points if v is not None), default=None) for name, points in curves.items()}
    rates = sorted({rate for points in curves.values() for rate, _ in points})
    rows = [f"| learning rate | {' | '.join(curves)} |", "|---" * (len(curves) + 1) + "|"]
    for rate in rates:
        cells = [_cell(dict(points), rate, best[name]) for name, points in curves.items()]
        rows.append(f"| {rate:g} | {' | '.join(cells)} |")
    rows += ["", f"Before training: {before:.3f}."]
    skipped = {line["optimizer"]: line["skipped"] for line in lines if "skipped" in line}
    rows += [f"{name} was skipped: {reason}" for name, reason in skipped.items()]
    return "\n".join(rows) + "\n"


def _cell(points: dict[float, float | None], rate: float, best: float | None) -> str:
    if rate not in points:
        return ""
    value = points[rate]
    if value is None:
        return "diverged"
    return f"**{value:.3f}**" if value == best else f"{value:.3f}"


def by_optimizer(lines: list[dict[str, Any]]) -> dict[str, list[tuple[float, float | None]]]:
    """(learning rate, perplexity) of the runs that were made, the last where one was made twice."""
    curves: dict[str, dict[float, float | None]] = {}
    for line in lines:
        if "lr" in line and "skipped" not in line:
            lost = "failed" in line or line["diverged"]
            curves.setdefault(line["optimizer"], {})[line["lr"]] = None if lost else line["ppl"]
    return {name: sorted(points.items()) for name, points in curves.items()}


def draw(folder: Path) -> None:
    """Write table and plot of all lines in the folder's results.jsonl."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    before = next(line["before"] for line in lines if "before" in line)
    (folder / "quality.md").write_text(table(lines, before), encoding="utf-8")
    if curves := by_optimizer(lines):
        plot = svg(curves, before, "SmolLM2-135M, bfloat16, one epoch: held-out perplexity")
        (folder / "quality.svg").write_text(plot, encoding="utf-8")


def record(folder: Path, line: dict[str, Any]) -> None:
    """Print a line and add it to the results: infinity and NaN, which JSON has not, as null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    text = json.dumps(finite)
    print(text, flush=True)
    with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")


@contextmanager
def prepared(arguments: argparse.Namespace) -> Iterator[Task]:
    """The rows of both files, and the model that all runs begin with."""
    with tempfile.TemporaryDirectory(prefix="collie-quality-") as temporary:
        os.environ.setdefault("COLLIE_RUNS", f"{temporary}/runs")
        if arguments.shape == "tiny":
            model = tiny_model(Path(temporary) / "model")
            encode, end = (lambda texts: [list(text.encode()) for text in texts]), 256
        else:
            model = arguments.model
            encode, end = encoder(model)
        sets = []
        for name, rows in (("train", arguments.steps * arguments.batch), ("test", arguments.held_out)):
            cut = blocks(read_texts(arguments.data / f"{name}.jsonl"), encode, end, arguments.length)[:rows]
            sets.append(CollieDatasetForTraining([{"input_ids": row} for row in cut]))
        whole = len(sets[0]) // arguments.batch * arguments.batch  # no step is smaller than the others
        yield Task(model, sets[0][:whole], sets[1], arguments.batch, arguments.length)


def tiny_model(folder: Path) -> Path:
    sizes = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    CollieModelForCausalLM.from_config(CollieConfig(model_config=sizes)).save_pretrained(folder)
    return folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M")
    parser.add_argument("--data", type=Path, help="folder of train.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, help="where results, table and plot are written")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="only write table and plot of its results.jsonl")
    parser.add_argument("--optimizers", default="lomo,adalomo,adamw,lora", help="by commas")
    parser.add_argument("--rates", help="learning rates instead of each optimizer's own, by commas")
    parser.add_argument("--steps", type=int, default=150, help="at most: there is one epoch")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--held-out", type=int, default=256, help="rows of the test text, at most")
    arguments = parser.parse_args()
    if unknown := set(arguments.optimizers.split(",")) - set(METHODS):
        parser.error(f"--optimizers: {min(unknown)!r} is none of {', '.join(METHODS)}")
    missing = [name for name in ("data", "out") if getattr(arguments, name) is None]
    missing += ["model"] * (arguments.shape == "smollm2" and arguments.model is None)
    if missing and arguments.draw is None:
        parser.error(f"--{missing[0]} is needed")
    return arguments


def main() -> int:
    arguments = parse()
    if arguments.draw is not None:
        draw(arguments.draw)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    with prepared(arguments) as task:
        config = task.config()
        before = perplexity(CollieModelForCausalLM.from_pretrained(task.model, config=config), config, task)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        sizes = {"steps": task.steps, "batch": task.batch, "length": task.length, "held_out": len(task.held_out)}
        record(arguments.out, {"before": before, "device": device, "torch": torch.__version__, **sizes})
        for method in (METHODS[name] for name in arguments.optimizers.split(",")):
            for rate in [float(r) for r in arguments.rates.split(",")] if arguments.rates else method.rates:
                line = attempt(method, rate, task)
                record(arguments.out, line)
                if "skipped" in line:
                    break  # for the same reason at every rate
    draw(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
