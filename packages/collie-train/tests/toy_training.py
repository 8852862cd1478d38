"""A toy model, ten rows and a config that the Trainer's tests share."""

import torch

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM
from collie.parallel import full_parameters
from collie.testing import toy_llama_config

ROWS = 10
LR = 0.05


def rows():
    """Ten rows of different lengths and target counts."""
    generator = torch.Generator().manual_seed(4)
    made = []
    for index in range(ROWS):
        ids = torch.randint(3, 97, (5 + index % 4,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (1 + index % 3) + ids[1 + index % 3 :]})
    return made


def make_config(stage=0, micro=4, accumulate=1, **fields):
    config = CollieConfig()
    config.model_config = toy_llama_config(initializer_range=0.4)
    config.ds_config = {"zero_optimization": {"stage": stage}}
    config.train_epochs, config.use_flash, config.checkpointing = 1, False, False
    config.train_micro_batch_size, config.gradient_accumulation_steps = micro, accumulate
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def make_model(config, dtype=torch.float32):
    return CollieModelForCausalLM.from_config(config, dtype=dtype)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=LR)


def snapshot(model, trainer):
    """The whole weights on rank 0 (None elsewhere), copied: what is trained later does not change them."""
    gathered = full_parameters(model, trainer.topology)
    return {name: tensor.clone() if tensor is not None else None for name, tensor in gathered}
