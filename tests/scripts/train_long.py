"""Train a MOSS-moon checkpoint for many epochs, evaluating now and then: a job to be watched and stopped.

train_long.py CHECKPOINT OUT     writes OUT when `Trainer.train` returned by itself, with the last step in it
"""

import pathlib
import sys

from transformers import AutoTokenizer

from collie import CollieConfig, EvaluatorForGeneration, EvaluatorForPerplexity, Lomo, LossMonitor, TGSMonitor, Trainer
from collie.data import CollieDatasetForTraining
from collie.models import CollieModelForCausalLM

checkpoint, out = sys.argv[1], pathlib.Path(sys.argv[2])
config = CollieConfig.from_pretrained(checkpoint)
config.train_epochs, config.train_micro_batch_size, config.eval_per_n_steps = 10000, 2, 20
config.ds_config = {"zero_optimization": {"stage": 3}}

tokenizer = AutoTokenizer.from_pretrained(checkpoint)
rows = [{"input": "Collie is a python package for ", "output": "finetuning large language models."}] * 40
dataset = CollieDatasetForTraining(rows, tokenizer)
model = CollieModelForCausalLM.from_pretrained(checkpoint, config=config)
trainer = Trainer(
    model=model,
    config=config,
    optimizer=Lomo(model, lr=0.3, clip_grad_norm=5.0),
    train_dataset=dataset,
    monitors=[LossMonitor(config), TGSMonitor(config)],
    evaluators=[
        EvaluatorForPerplexity(model=model, config=config, dataset=dataset[:2]),
        EvaluatorForGeneration(model=model, config=config, tokenizer=tokenizer, dataset=dataset[:2]),
    ],
)
trainer.train()
if trainer.topology.rank == 0:
    out.write_text(str(trainer.global_batch_idx))
