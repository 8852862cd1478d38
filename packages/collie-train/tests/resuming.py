"""A training that saves a checkpoint on its way, and one that goes on from it: what the tests of both compare."""

import torch
from toy_training import make_config, make_model, rows, snapshot

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.optim import AdaLomo, Lomo


class Losses(Callback):
    """Notes each step's loss; saves a checkpoint after one of them, without waiting for it."""

    def __init__(self, save_after=None, path=None):
        self.save_after, self.path = save_after, path
        self.losses = {}

    def on_train_batch_end(self, trainer, loss):
        self.losses[trainer.global_batch_idx] = loss.item()
        if trainer.global_batch_idx == self.save_after:
            trainer.save_checkpoint(self.path, wait=False)


class NoisyRows:
    """Rows of which one token is drawn when they are read."""

    def __init__(self):
        self.rows = rows()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return row | {"input_ids": [int(torch.randint(3, 97, ())), *row["input_ids"][1:]]}


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def adafactor(model):
    return torch.optim.Adafactor(model.parameters(), lr=0.01)


class Blocks(torch.optim.Optimizer):
    """SGD whose step is divided by the largest gradient there ever was in a block of four elements."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                flat = torch.nn.functional.pad(parameter.grad.flatten(), (0, -parameter.numel() % 4)).view(-1, 4)
                state = self.state[parameter]
                largest = torch.maximum(state.get("largest", torch.zeros(len(flat))), flat.abs().amax(1))
                state["largest"] = largest
                step = (flat / (largest[:, None] + 1e-6)).flatten()[: parameter.numel()]
                parameter.add_(step.view_as(parameter), alpha=-group["lr"])


def blocks(model):
    return Blocks(model.parameters(), lr=0.01)


def lomo(model):
    return Lomo(model, lr=0.05)


def adalomo(model):
    return AdaLomo(model, lr=0.01)


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))


def trainer_for(optimizer, callbacks, dtype=torch.float32, dataset=None, **config):
    config = make_config(**config)
    model = make_model(config, dtype)
    dataset = rows() if dataset is None else dataset
    if optimizer is None:  # ds_config's
        return Trainer(model, config, train_dataset=dataset, callbacks=callbacks)
    return Trainer(
        model, config, optimizer=optimizer(model), lr_scheduler=warm_up, train_dataset=dataset, callbacks=callbacks
    )


def train(optimizer, callback, resume=None, **arguments):
    """Train; return each step's loss and, on rank 0, the whole weights."""
    trainer = trainer_for(optimizer, callback, **arguments)
    trainer.train(resume=resume)
    return callback.losses, snapshot(trainer.model, trainer)


def interrupted(optimizer, path, save_after=3, **arguments):
    """Train left alone, saving on the way, and then from that checkpoint on; return both."""
    alone = train(optimizer, Losses(save_after, path), **arguments)
    resumed = train(optimizer, Losses(), resume=path, **arguments)
    return alone, resumed


def assert_goes_on_bitwise(results, save_after=3):
    """On every rank: the losses after the checkpoint, and the last weights, are those of the run left alone."""
    for (alone, weights), (resumed, resumed_weights) in results:
        assert len(alone) > save_after + 1
        assert resumed == {step: loss for step, loss in alone.items() if step > save_after}
        assert weights.keys() == resumed_weights.keys()
        for name, tensor in weights.items():
            assert tensor is None or torch.equal(tensor, resumed_weights[name]), name
