"""Whether bfloat16 on this machine learns as float32 on a CPU does: the losses of SmolLM2-135M under LOMO.

    python benchmarks/losses.py --model FOLDER --data GSM8K --write losses.json      # float32, on a CPU
    python benchmarks/losses.py --model FOLDER --data GSM8K --compare losses.json --stochastic-rounding

FOLDER is what `benchmarks/smollm2.py` writes, GSM8K has train.jsonl. The second call, on a GPU, makes the same steps
with the same rows in bfloat16, and prints the largest difference of a step's loss, relative to float32's: status 1
where one is above --within. The file holds what the rows were made of; other rows are refused.

An update of LOMO is small beside a weight's last place in bfloat16: rounded to the nearest most of it is lost, and at
the default rate losses are some 5 % behind within a dozen steps. Without --stochastic-rounding that is what is seen.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from smollm2 import blocks, encoder, read_texts
from torch import Tensor

from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.trainer import Trainer
from collie.data import CollieDatasetForTraining
from collie.models import CollieModelForCausalLM
from collie.optim.lomo import Lomo


class Losses(Callback):
    """Keeps every step's loss."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, loss: Tensor) -> None:
        self.values.append(loss.item())


def train(
    folder: Path, rows: list[list[int]], batch: int, lr: float, dtype: torch.dtype, **options: Any
) -> list[float]:
    """Return the loss of each step of one epoch; `options` are LOMO's."""
    config = CollieConfig.from_pretrained(folder, train_epochs=1, train_micro_batch_size=batch, checkpointing=False)
    model = CollieModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype)
    losses = Losses()
    dataset = CollieDatasetForTraining([{"input_ids": row} for row in rows])
    with tempfile.TemporaryDirectory(prefix="collie-losses-") as runs:
        os.environ.setdefault("COLLIE_RUNS", runs)
        optimizer = Lomo(model, lr=lr, **options)
        Trainer(model=model, config=config, optimizer=optimizer, train_dataset=dataset, callbacks=losses).train()
    return losses.values


def compare(losses: list[float], reference: list[float], within: float) -> dict[str, Any]:
    """The differences relative to the reference, step by step; a loss that is no number passes nothing."""
    apart = [abs(ours - theirs) / theirs for ours, theirs in zip(losses, reference, strict=True)]
    worst = max(range(len(apart)), key=apart.__getitem__)
    return {
        "largest_difference": apart[worst],
        "at_step": worst,
        "mean_difference": sum(apart) / len(apart),
        "passed": all(difference <= within for difference in apart),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M")
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE", help="train in float32, and write the losses")
    what.add_argument("--compare", type=Path, metavar="FILE", help="train in bfloat16, and compare with the file's")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4, help="rows of a step")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--stochastic-rounding", action="store_true", help="of LOMO's updates in bfloat16")
    parser.add_argument("--within", type=float, default=0.02, help="the largest difference that passes")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    written = json.loads(arguments.compare.read_text(encoding="utf-8")) if arguments.compare is not None else None
    asked = {"steps": arguments.steps, "batch": arguments.batch, "length": arguments.length, "lr": arguments.lr}
    sizes = written["sizes"] if written is not None else asked
    encode, end = encoder(arguments.model)
    rows = blocks(read_texts(arguments.data / "train.jsonl"), encode, end, sizes["length"])
    rows = rows[: sizes["steps"] * sizes["batch"]]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    if written is not None and digest != written["rows"]:
        raise SystemExit(f"{arguments.compare} is of other rows: give the same --data, and a model with its tokenizer.")
    started = time.perf_counter()
    dtype = torch.float32 if written is None else torch.bfloat16
    options = {"stochastic_rounding": True} if arguments.stochastic_rounding else {}
    losses = train(arguments.model, rows, sizes["batch"], sizes["lr"], dtype, **options)
    line = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "sizes": sizes,
        **options,
        "first": losses[0],
        "last": losses[-1],
        "seconds": round(time.perf_counter() - started, 1),
    }
    if written is None:
        content = {"sizes": sizes, "rows": digest, "losses": losses}
        arguments.write.write_text(json.dumps(content) + "\n", encoding="utf-8")
        print(json.dumps(line))
        return 0
    compared = compare(losses, written["losses"], arguments.within)
    print(json.dumps(line | compared | {"losses": losses, "reference": written["losses"]}))
    return 0 if compared["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
