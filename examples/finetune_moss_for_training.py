"""Finetune MOSS on one sentence with LOMO and ZeRO-3: every weight is trained, and no gradient is ever kept.

    collie-tui run --nproc 4 examples/finetune_moss_for_training.py [CHECKPOINT]
    torchrun --standalone --nproc_per_node=4 examples/finetune_moss_for_training.py [CHECKPOINT]

CHECKPOINT is a MOSS-moon folder or name, fnlp/moss-moon-003-sft where none is given. `python demo/tiny_moss.py FOLDER`
makes a tiny one that trains in seconds on two CPU cores.
"""

import sys

from transformers import AutoTokenizer

from collie.config import CollieConfig
from collie.controller.evaluator import EvaluatorForGeneration, EvaluatorForPerplexity
from collie.controller.trainer import Trainer
from collie.data import CollieDatasetForTraining
from collie.metrics import DecodeMetric, PPLMetric
from collie.models.moss_moon import Moss003MoonForCausalLM
from collie.module import GPTLMLoss
from collie.optim.lomo import Lomo
from collie.utils.monitor import EvalMonitor, LossMonitor, MemoryMonitor, StepTimeMonitor, TGSMonitor

# 1. Where the weights and the tokenizer come from.
pretrained_model = sys.argv[1] if len(sys.argv) > 1 else "fnlp/moss-moon-003-sft"

# 2. One CollieConfig holds everything: the model's architecture, how it is split, how it is trained.
config = CollieConfig.from_pretrained(pretrained_model, trust_remote_code=True)
config.dp_size = 1  # becomes the number of ranks, since neither tp nor pp takes any
config.tp_size = 1
config.pp_size = 1
config.train_epochs = 1
config.eval_per_n_steps = 0
config.eval_per_n_epochs = 1
config.train_micro_batch_size = 2
config.eval_batch_size = 1
config.ds_config = {"zero_optimization": {"stage": 3}}

# 3. The tokenizer, and the data: the loss is taken on "output" and the end-of-text token alone.
tokenizer = AutoTokenizer.from_pretrained(pretrained_model, trust_remote_code=True)
train_dataset = [
    {"input": "Collie is a python package for ", "output": "finetuning large language models."} for _ in range(400)
]
train_dataset = CollieDatasetForTraining(train_dataset, tokenizer)
eval_dataset = train_dataset[:8]

# 4. The model: each rank reads from the checkpoint only the slices that it keeps.
model = Moss003MoonForCausalLM.from_pretrained(pretrained_model, config=config)

# 5. The optimizer: LOMO updates a weight as soon as its gradient is there, and frees the gradient.
#    The rate suits a tiny model with random weights; for the released MOSS take 1e-3 and clip_grad_norm 1.0.
optimizer = Lomo(model, lr=0.3, clip_grad_norm=5.0)

# 6. What is watched on every rank while it trains; the dashboard shows it.
monitors = [
    StepTimeMonitor(config),
    TGSMonitor(config),
    MemoryMonitor(config),
    LossMonitor(config),
    EvalMonitor(config),
]

# 7. What is asked after each epoch: the perplexity, and the answer that the model gives to the input alone.
evaluator_ppl = EvaluatorForPerplexity(
    model=model,
    config=config,
    dataset=eval_dataset,
    monitors=[EvalMonitor(config)],
    metrics={"ppl": PPLMetric()},
)
evaluator_decode = EvaluatorForGeneration(
    model=model,
    config=config,
    tokenizer=tokenizer,
    dataset=eval_dataset,
    monitors=[EvalMonitor(config)],
    metrics={"decode": DecodeMetric()},
)

# 8. The Trainer puts them together.
trainer = Trainer(
    model=model,
    config=config,
    train_dataset=train_dataset,
    loss_fn=GPTLMLoss(-100),
    optimizer=optimizer,
    monitors=monitors,
    evaluators=[evaluator_ppl, evaluator_decode],
)
trainer.train()
