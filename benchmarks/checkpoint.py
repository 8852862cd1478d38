"""How long a checkpoint of 1 GB of state keeps training from its next step: against a copy of the same bytes in memory.

    python benchmarks/checkpoint.py [--repeats 5]

A LLaMA of 85 million parameters in float32 with AdamW, whose weights and two moments are 1.02 GB, on one CPU process.
In turn: `save_checkpoint(wait=False)` until it returns; `clone` of every tensor; then waiting until the checkpoint is
on the disk. Prints one line of JSON: medians in seconds, and their ratio, which is to be at most 1.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from typing import Any

import torch
from transformers import LlamaConfig

from collie.config import CollieConfig
from collie.controller.trainer import Trainer
from collie.models import CollieModelForCausalLM


def trainer() -> Trainer:
    """A Trainer after its first step, from which on the optimizer has a state."""
    config = CollieConfig(seed=1)
    config.model_config = LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=5, num_attention_heads=12,
        num_key_value_heads=12, max_position_embeddings=64,
    )  # fmt: skip
    config.train_micro_batch_size, config.train_epochs, config.use_flash = 1, 1, False
    model = CollieModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}]
    made = Trainer(model, config, optimizer=optimizer, train_dataset=rows)
    made.train()
    return made


def state(of: Trainer) -> list[torch.Tensor]:
    """The tensors that a checkpoint of it holds."""
    assert of.optimizer is not None
    moments = [tensor for state in of.optimizer.state.values() for tensor in state.values() if tensor.dim()]
    return [*of.model.parameters(), *moments]


def compare(repeats: int, folder: str) -> dict[str, Any]:
    made = trainer()
    tensors = state(made)
    seconds: dict[str, list[float]] = {"clone": [], "blocked": [], "written": []}
    for number in range(repeats + 1):
        began = time.perf_counter()
        copies = [tensor.detach().clone() for tensor in tensors]
        cloned = time.perf_counter() - began
        del copies
        began = time.perf_counter()
        complete = threading.Event()
        made.save_checkpoint(f"{folder}/step-{number % 2}", wait=False, then=lambda _, done=complete: done.set())
        blocked = time.perf_counter() - began
        complete.wait()
        written = time.perf_counter() - began
        if number:  # the first of each also makes the process grow
            for key, value in (("clone", cloned), ("blocked", blocked), ("written", written)):
                seconds[key].append(value)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return {
        "GB": round(sum(tensor.nbytes for tensor in tensors) / 1e9, 3),
        "tensors": len(tensors),
        "repeats": repeats,
        **{f"{key}_s": round(value, 3) for key, value in medians.items()},
        "ratio": round(medians["blocked"] / medians["clone"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="collie-checkpoint-") as folder:
        os.environ["COLLIE_RUNS"] = f"{folder}/runs"
        print(json.dumps(compare(arguments.repeats, folder)))


if __name__ == "__main__":
    main()
