"""Learning rates come from any scheduler, stepped once an update, of plain and of fused optimizers."""

import warnings

import pytest
import torch
from deepspeed.runtime import lr_schedules
from toy_training import make_config, make_model, rows
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.interfaces import ConfigError
from collie.optim import AdaLomo, Lomo
from collie.testing import run_ranks

LR, STEPS = 0.1, 5  # ten rows in pairs
SCHEDULES = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, LR, total_steps=STEPS + 1, cycle_momentum=False),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 2), torch.optim.lr_scheduler.ExponentialLR(o, 0.5)],
        [2],
    ),
    "constant": lambda o: get_constant_schedule_with_warmup(o, 3),
    "linear": lambda o: get_linear_schedule_with_warmup(o, 2, STEPS),
    "cosine": lambda o: get_cosine_schedule_with_warmup(o, 2, STEPS),
    "polynomial": lambda o: get_polynomial_decay_schedule_with_warmup(o, 1, STEPS, power=2.0),
    "deepspeed warmup": lambda o: lr_schedules.WarmupLR(o, 0.0, LR, 3, "linear"),
    "deepspeed decay": lambda o: lr_schedules.WarmupDecayLR(o, STEPS, 0.0, LR, 2, "linear"),
    "deepspeed cosine": lambda o: lr_schedules.WarmupCosineLR(o, STEPS, 0.1, 2, warmup_type="linear"),
    "deepspeed range": lambda o: lr_schedules.LRRangeTest(o, 0.01, 2, 1.0),
}
OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=LR),
    "lomo": lambda m: Lomo(m, lr=LR, weight_decay=0.1, no_decay="*norm*"),
    "adalomo": lambda m: AdaLomo(m, lr=LR),
}


def expected_rates(make):
    """The learning rate of each step in a bare torch loop."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=LR)
    schedule, rates = make(optimizer), []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


class Rates(Callback):
    """Keeps the learning rate of each step, and how far the first norm's weight moved relative to it."""

    def __init__(self):
        self.rates = []

    def on_train_batch_begin(self, trainer, batch):
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {trainer.lr}
        self.rates.append(trainer.lr)


def rates(schedule, optimizer, accumulate):
    config = make_config(0, micro=2 // accumulate, accumulate=accumulate)
    model = make_model(config)
    made, seen = OPTIMIZERS[optimizer](model), Rates()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.step.*before.*optimizer.step.*")
        Trainer(
            model, config, optimizer=made, lr_scheduler=SCHEDULES[schedule], train_dataset=rows(), callbacks=[seen]
        ).train()
    return seen.rates


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_each_scheduler_moves_on_once_a_step(optimizer):
    """Also where a step has two micro-batches, and with a group of parameters that do not decay."""

    def run():
        whole = {(name, 1): rates(name, optimizer, 1) for name in SCHEDULES}
        return whole | {(name, 2): rates(name, optimizer, 2) for name in ("step", "cosine", "deepspeed decay")}

    for (name, accumulate), seen in run_ranks(1, run)[0].items():
        expected = expected_rates(SCHEDULES[name])
        assert len(set(expected)) > 1, f"{name} would not show whether it moves"
        assert seen == pytest.approx(expected), (name, accumulate)


def test_a_plateau_is_one_of_the_loss():
    """ReduceLROnPlateau gets each step's loss; with a threshold that none reaches every step is on a plateau."""

    def run():
        config = make_config(0, micro=2)
        model, seen = make_model(config), Rates()
        optimizer = Lomo(model, lr=LR)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs"
        )
        Trainer(
            model, config, optimizer=optimizer, lr_scheduler=schedule, train_dataset=rows(), callbacks=[seen]
        ).train()
        return seen.rates

    assert run_ranks(1, run)[0] == [LR, LR, LR / 2, LR / 4, LR / 8]  # the first loss is the best so far


@pytest.mark.parametrize(("stage", "accumulate"), [(0, 1), (1, 2)])
def test_a_scheduler_of_ds_config_steps_an_optimizer_of_ds_config(stage, accumulate):
    """DeepSpeed steps it, at updates alone; one of the Trainer beside it is refused."""

    def run():
        config = make_config(stage, micro=2 // accumulate, accumulate=accumulate)
        warmup = {"warmup_min_lr": 0.0, "warmup_max_lr": LR, "warmup_num_steps": 3, "warmup_type": "linear"}
        config.ds_config = {
            **config.ds_config,
            "optimizer": {"type": "Adagrad", "params": {"lr": LR}},
            "scheduler": {"type": "WarmupLR", "params": warmup},
        }
        model, seen = make_model(config), Rates()
        Trainer(model, config, train_dataset=rows(), callbacks=[seen]).train()
        with pytest.raises(ConfigError, match=r"lr_scheduler.*ds_config\['scheduler'\]"):
            Trainer(make_model(config), config, train_dataset=rows(), lr_scheduler=SCHEDULES["step"])
        return seen.rates

    assert run_ranks(1, run)[0] == pytest.approx(expected_rates(SCHEDULES["deepspeed warmup"]))
