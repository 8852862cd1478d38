"""Finetune all of SmolLM2-135M with LOMO: from a function's signature to the first sentence of its documentation.

    collie-tui run --nproc 1 examples/finetune_smollm2_on_docstrings.py CHECKPOINT PAIRS

CHECKPOINT is a LLaMA folder in Hugging Face layout (`demo/smollm2.py` makes one), PAIRS a folder with train.jsonl and
held_out.jsonl, rows {"input", "output"} (`demo/stdlib_pairs.py` writes them). Perplexity and three answers are asked
for before and after the training, on modules that it never sees.
"""

import json
import pathlib
import random
import sys

from transformers import AutoTokenizer, GenerationConfig

from collie.config import CollieConfig
from collie.controller.evaluator import EvaluatorForGeneration, EvaluatorForPerplexity
from collie.controller.trainer import Trainer
from collie.data import CollieDatasetForTraining
from collie.metrics import DecodeMetric, PPLMetric
from collie.models import CollieModelForCausalLM
from collie.optim.lomo import Lomo
from collie.utils.monitor import EvalMonitor, LossMonitor, MemoryMonitor, StepTimeMonitor, TGSMonitor

checkpoint, pairs = sys.argv[1], pathlib.Path(sys.argv[2])
TRAINED_ROWS, HELD_OUT_ROWS = 320, 64
SHOWN = ("def cmath.sqrt", "def bz2.BZ2File.read(", "def statistics.harmonic_mean")


def read(name: str) -> list[dict[str, str]]:
    """The rows of one file, shuffled the same way on every rank: neighbours in it come from one module."""
    rows = [json.loads(line) for line in (pairs / name).read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    return [{"input": row["input"], "output": row["output"]} for row in rows]


config = CollieConfig.from_pretrained(checkpoint)
config.train_epochs = 1
config.eval_per_n_epochs = 1
config.train_micro_batch_size = 8
config.eval_batch_size = 8
config.checkpointing = False  # short rows: memory is not short here, time is

tokenizer = AutoTokenizer.from_pretrained(checkpoint)
held_out = read("held_out.jsonl")
train_dataset = CollieDatasetForTraining(read("train.jsonl")[:TRAINED_ROWS], tokenizer)
eval_dataset = CollieDatasetForTraining(held_out[:HELD_OUT_ROWS], tokenizer)
shown = CollieDatasetForTraining([row for row in held_out if row["input"].startswith(SHOWN)], tokenizer)

model = CollieModelForCausalLM.from_pretrained(checkpoint, config=config)
optimizer = Lomo(model, lr=3e-3)

trainer = Trainer(
    model=model,
    config=config,
    tokenizer=tokenizer,
    optimizer=optimizer,
    train_dataset=train_dataset,
    monitors=[StepTimeMonitor(config), TGSMonitor(config), MemoryMonitor(config), LossMonitor(config)],
    evaluators=[
        EvaluatorForPerplexity(
            model=model,
            config=config,
            dataset=eval_dataset,
            monitors=[EvalMonitor(config)],
            metrics={"ppl": PPLMetric()},
        ),
        EvaluatorForGeneration(
            model=model,
            config=config,
            tokenizer=tokenizer,
            dataset=shown,
            generation_config=GenerationConfig(max_new_tokens=32, do_sample=False),
            metrics={"decode": DecodeMetric()},
        ),
    ],
)
trainer.eval()  # before
trainer.train()  # and, after its only epoch, again
