"""LoRA around weights in 8 bits and in nf4 beside LoRA around bfloat16: does it learn, what does it take, does it fit.

    python benchmarks/quantized.py [--model FOLDER | --shape 7b] [--kinds bf16,int8,nf4] [--steps 30]

Each kind gets the same weights, the same adapter and the same rows, which are a few rows again and again: their loss
must fall, also after a forward in evaluation mode before the training (of which nf4 weights that were repacked for it
would learn nothing). Prints a JSON line a kind:

    weights_gib     of the model with its adapter, as its tensors lie on the device
    peak_gib        largest sum of tensors while training, as torch counts it; None on a CPU
    step_s          median of the steps after the first three; relative: to bf16's
    loss            of the first step and the mean of the last three
    merged          the adapter that was trained there, merged into the plain model: the largest difference between the
                    logits of both, and the mean of KL(quantized with adapter ‖ merged) over all positions, in nats

A bf16 line's `merged` says what merging alone rounds away. Exits with 1 where a loss did not fall. It needs the extras
peft and quant of collie-models, and neither DeepSpeed's engine nor a network.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from train_step import SHAPES
from transformers import BitsAndBytesConfig, LlamaConfig

from collie.adapters import load_peft, merge
from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.trainer import Trainer
from collie.models import CollieModelForCausalLM
from collie.parallel import setup_distribution

QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "int8": {"load_in_8bit": True},
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
}
WARM_UP = 3  # steps


class Watch(Callback):
    """Notes each step's loss, and when it ended."""

    def __init__(self, device: torch.device) -> None:
        self.losses: list[float] = []
        self.ends: list[float] = []
        self._device = device

    def on_train_batch_end(self, trainer: Trainer, loss: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.losses.append(float(loss))
        self.ends.append(time.perf_counter())

    @property
    def step_seconds(self) -> float:
        ends = self.ends[WARM_UP - 1 :]
        return statistics.median(end - start for start, end in pairwise(ends))


def make_config(arguments: argparse.Namespace) -> CollieConfig:
    if arguments.model is not None:
        config = CollieConfig.from_pretrained(str(arguments.model))
    else:
        config = CollieConfig(
            model_config=LlamaConfig(
                vocab_size=arguments.vocabulary, max_position_embeddings=max(2048, arguments.seq),
                tie_word_embeddings=False, **SHAPES[arguments.shape],
            )
        )  # fmt: skip
    config.ds_config = {"bf16": {"enabled": True}}
    config.train_micro_batch_size, config.train_epochs, config.checkpointing = arguments.batch, arguments.steps, True
    return config


def make_model(arguments: argparse.Namespace, kind: str, adapted: bool = True) -> CollieModelForCausalLM:
    """The same weights for every kind; `adapted`: with a new adapter around them."""
    config = make_config(arguments)
    if QUANTIZATIONS[kind]:
        config.quantization_config = BitsAndBytesConfig(**QUANTIZATIONS[kind])
    if adapted:
        config.peft_config = LoraConfig(r=arguments.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    if arguments.model is not None:
        return CollieModelForCausalLM.from_pretrained(str(arguments.model), config)
    return CollieModelForCausalLM.from_config(config)


def make_rows(arguments: argparse.Namespace, vocabulary: int) -> list[dict[str, list[int]]]:
    """One step's rows: an epoch is a step."""
    numbers = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (arguments.batch, arguments.seq), generator=numbers)
    return [{"input_ids": row, "labels": row} for row in ids.tolist()]


def log_probabilities(model: CollieModelForCausalLM, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and log-probabilities [B, S, V] in float32, on the CPU."""
    with torch.no_grad():
        logits_BSV = model.eval()(ids).logits.float().cpu()
    return logits_BSV, logits_BSV.log_softmax(-1)


def measure(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Train one kind, and compare it with its adapter merged into the plain model."""
    device = setup_distribution(make_config(arguments)).device
    on_gpu = device.type == "cuda"
    model = make_model(arguments, kind)
    rows = make_rows(arguments, model.config.vocab_size)
    ids = torch.tensor([row["input_ids"] for row in rows], device=device)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    log_probabilities(model, ids)  # in evaluation mode, as somebody may try the model before training it
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    watch = Watch(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=arguments.lr)
    trainer = Trainer(model, model.collie_config, optimizer=optimizer, train_dataset=rows, callbacks=watch)
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    first, last = watch.losses[0], statistics.fmean(watch.losses[-3:])
    logits, own = log_probabilities(model, ids)
    with tempfile.TemporaryDirectory(prefix="collie-quantized-") as folder:
        trainer.save_peft(folder)
        del model, optimizer, trainer
        gc.collect()
        plain = make_model(arguments, "bf16", adapted=False)
        load_peft(plain, plain.collie_config, folder)
        merge(plain)
    merged, theirs = log_probabilities(plain, ids)
    return {
        "kind": kind,
        "weights_gib": weights / 2**30,
        "peak_gib": peak / 2**30 if peak is not None else None,
        "step_s": watch.step_seconds,
        "loss": [first, last],
        "learns": last < arguments.falls * first,
        "merged": {
            "largest_difference": float((logits - merged).abs().max()),
            "kl": float((own.exp() * (own - theirs)).sum(-1).mean()),
        },
    }


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a LLaMA-like model's folder, in place of random weights")
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="of random weights")
    parser.add_argument("--vocabulary", type=int, default=32000, help="of random weights")
    parser.add_argument("--kinds", default="bf16,int8,nf4", help="in this order, by commas")
    parser.add_argument("--seq", type=int, default=512, help="tokens of a row")
    parser.add_argument("--batch", type=int, default=4, help="rows of a step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--falls", type=float, default=0.9, help="the last loss must be below this times the first")
    arguments = parser.parse_args(given)
    if unknown := [kind for kind in arguments.kinds.split(",") if kind not in QUANTIZATIONS]:
        parser.error(f"--kinds: {unknown[0]!r} is none of {', '.join(QUANTIZATIONS)}")
    if arguments.steps < WARM_UP + 2:
        parser.error(f"--steps must be at least {WARM_UP + 2}")
    return arguments


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print every kind."""
    lines: list[dict[str, Any]] = []
    for kind in arguments.kinds.split(","):
        line = measure(arguments, kind)
        if lines and lines[0]["kind"] == "bf16":
            line["relative"] = line["step_s"] / lines[0]["step_s"]
        print(json.dumps(line), flush=True)
        lines.append(line)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return lines


def main() -> int:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="collie-runs-") as runs:
        os.environ.setdefault("COLLIE_RUNS", runs)
        return 0 if all(line["learns"] for line in run(arguments)) else 1


if __name__ == "__main__":
    sys.exit(main())
