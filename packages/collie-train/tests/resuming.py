"""A training that saves a checkpoint on its way, and one that goes on from it: what the tests of both compare."""

import torch
from toy_training import make_config, make_model, rows, snapshot

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.optim import Lomo


class Losses(Callback):
    """Notes each step's loss, and saves a checkpoint after one of them."""

    def __init__(self, save_after=None, path=None, wait=False):
        self.save_after, self.path, self.wait = save_after, path, wait
        self.losses = {}

    def on_train_batch_end(self, trainer, loss):
        self.losses[trainer.global_batch_idx] = loss.item()
        if trainer.global_batch_idx == self.save_after:
            trainer.save_checkpoint(self.path, wait=self.wait)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def lomo(model):
    return Lomo(model, lr=0.05)


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))


def trainer_for(optimizer, callbacks, dtype=torch.float32, **config):
    config = make_config(**config)
    config.model_config.attention_bias = True
    model = make_model(config, dtype)
    optimizer = optimizer(model)
    return Trainer(model, config, optimizer=optimizer, lr_scheduler=warm_up, train_dataset=rows(), callbacks=callbacks)


def train(optimizer, callback, resume=None, dtype=torch.float32, **config):
    """Train; return each step's loss and, on rank 0, the whole weights."""
    trainer = trainer_for(optimizer, callback, dtype, **config)
    trainer.train(resume=resume)
    return callback.losses, snapshot(trainer.model, trainer)


def interrupted(optimizer, path, save_after=3, dtype=torch.float32, **config):
    """Train left alone, saving on the way, and then from that checkpoint on; return both."""
    alone = train(optimizer, Losses(save_after, path), dtype=dtype, **config)
    resumed = train(optimizer, Losses(), resume=path, dtype=dtype, **config)
    return alone, resumed
