"""float16 weights: losses are scaled, and a step that overflows anywhere changes nothing anywhere."""

import pytest
import torch
from toy_training import make_config, make_model, rows

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.interfaces import ConfigError
from collie.optim import AdaLomo, DynamicLossScaler, Lomo
from collie.parallel import active_topology, cut_of, original_of, setup_distribution, shard_of
from collie.testing import run_ranks, toy_llama_config

LR = 0.05
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="DeepSpeed refuses float16 on a CPU")


class Watch(Callback):
    """Keeps losses, learning rates, and the loss scale after each step."""

    def __init__(self):
        self.losses, self.scales, self.lrs = [], [], []

    def on_train_batch_end(self, trainer, loss):
        self.losses.append(float(loss))
        self.lrs.append(trainer.lr)
        scaler = trainer.optimizer.loss_scaler
        self.scales.append(scaler.loss_scale if scaler is not None else None)


def make_lomo(model, scale=2.0**8, **arguments):
    scaling = {} if model.dtype is torch.float32 else {"loss_scale_args": {"init_scale": scale}}
    return Lomo(model, lr=LR, **scaling, **arguments)


def make_adalomo(model, scale=2.0**8, **arguments):
    return AdaLomo(model, lr=LR, loss_scale=scale, **arguments)


def train(make, dtype=torch.float16, stage=0, micro=2, accumulate=1, scale=2.0**8, norm=None, **sizes):
    config = make_config(stage, micro=micro, accumulate=accumulate, **sizes)
    config.model_config = toy_llama_config(num_hidden_layers=2, initializer_range=0.3)
    setup_distribution(config)
    model = make_model(config, dtype=dtype)
    watch = Watch()
    optimizer = make(model, scale, clip_grad_norm=norm)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    trainer = Trainer(
        model, config, optimizer=optimizer, lr_scheduler=schedule, train_dataset=rows()[:8], callbacks=[watch]
    )
    before = held(model)
    trainer.train()
    return watch, before, held(model)


def held(model):
    """This rank's part of each parameter, by the name of the whole, with its cut."""
    topology = active_topology()
    return {
        original_of(p) or (cut_of(p).name if cut_of(p) else n): (cut_of(p), shard_of(p, topology).data.clone())
        for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("make", [make_lomo, make_adalomo], ids=["lomo", "adalomo"])
@pytest.mark.parametrize(
    ("ranks", "sizes"),
    [
        (1, {"micro": 4}),
        (1, {"micro": 2, "accumulate": 2, "norm": 0.5}),
        pytest.param(2, {"stage": 3}, marks=ON_GPU),
        (2, {"stage": 0, "micro": 1, "accumulate": 2}),
        (2, {"pp_size": 2, "micro": 2, "accumulate": 2}),
        (2, {"tp_size": 2, "micro": 4}),
    ],
    ids=str,
)
def test_it_trains_as_float32_does(make, ranks, sizes):
    """Losses of the first steps are those of float32 weights, to float16's precision."""
    watch = run_ranks(1, lambda: train(make, torch.float32, micro=4, norm=sizes.get("norm")))[0][0]
    for ours, _, _ in run_ranks(ranks, lambda: train(make, **sizes)):
        assert ours.losses == pytest.approx(watch.losses, rel=5e-3)
        assert ours.scales == [2.0**8] * len(ours.losses)


@pytest.mark.parametrize(
    ("ranks", "sizes"),
    [
        (1, {"micro": 8}),
        pytest.param(2, {"stage": 3, "micro": 4}, marks=ON_GPU),
        (2, {"micro": 2, "accumulate": 2}),
        (2, {"pp_size": 2, "micro": 4, "accumulate": 2}),
    ],
    ids=str,
)
def test_a_step_that_overflows_changes_nothing_and_halves_the_scale(ranks, sizes):
    """Not the weights on any rank, nor the scheduler."""
    for watch, before, after in run_ranks(ranks, lambda: train(make_lomo, scale=2.0**40, **sizes)):
        assert (watch.scales, watch.lrs) == ([2.0**39], [LR])
        assert all(torch.equal(before[name][1], after[name][1]) for name in before)


def test_an_overflow_on_one_rank_skips_the_step_on_all():
    """Its gradient alone is infinite before they are averaged."""

    def run():
        config = make_config()
        topology = setup_distribution(config)
        model = make_model(config, dtype=torch.float16)
        model.train()
        optimizer = make_lomo(model)
        before = {name: p.clone() for name, p in model.named_parameters()}
        ids = torch.tensor([[5, 6, 7, 8]])
        loss = model(ids, labels=ids).loss * (float("inf") if topology.dp_rank == 1 else 1.0)
        norm = optimizer.grad_norm(loss)
        loss = model(ids, labels=ids).loss if optimizer.needs_second_forward else loss
        applied = optimizer.fused_backward(loss)
        after = dict(model.named_parameters())
        return applied, norm, optimizer.loss_scaler.loss_scale, all(torch.equal(after[n], before[n]) for n in before)

    for applied, norm, scale, unchanged in run_ranks(2, run):
        assert (applied, scale, unchanged) == (False, 2.0**7, True)
        assert not torch.tensor(norm).isfinite()


def test_the_scaler_grows_after_a_window_and_shrinks_after_enough_overflows():
    scaler = DynamicLossScaler(init_scale=8, scale_window=2, delayed_shift=2)
    said = []
    for overflow in (False, False, True, True, False, True, True, True):
        scaler.update_scale(overflow)
        said.append(scaler.loss_scale)
    assert said == [8, 16, 16, 8, 8, 4, 2, 1]
    with pytest.raises(FloatingPointError, match="min_scale=1"):
        scaler.update_scale(True)
    patient = DynamicLossScaler(init_scale=8, delayed_shift=2, consecutive_hysteresis=True)
    for overflow in (True, False, True):
        patient.update_scale(overflow)
    assert patient.loss_scale == 8
    other = DynamicLossScaler(init_scale=4)
    other.load_state_dict(patient.state_dict())
    assert other.state_dict() == patient.state_dict()
    assert DynamicLossScaler(init_scale=1, raise_error_at_min_scale=False).update_scale(True) is None
    with pytest.raises(ConfigError, match="bfloat16"):
        DynamicLossScaler(dtype=torch.bfloat16)


def test_what_ds_config_says_of_scaling_is_not_ignored():
    def run():
        config = make_config()
        config.ds_config = {"fp16": {"enabled": True, "initial_scale_power": 12}}
        model = make_model(config, torch.float16)
        with pytest.raises(ConfigError, match=r"initial_scale_power.*loss_scale_args"):
            Trainer(model, config, optimizer=Lomo(model), train_dataset=rows())
        return True

    assert run_ranks(1, run) == [True]


def test_a_state_dict_has_the_scale():
    model = torch.nn.Linear(2, 2).half()
    optimizer = Lomo(model, loss_scale_args={"init_scale": 32.0, "scale_window": 1})
    loss = model(torch.ones(1, 2, dtype=torch.float16)).sum()
    optimizer.grad_norm(loss)
    assert optimizer.fused_backward(loss)
    again = Lomo(model)
    again.load_state_dict(optimizer.state_dict())
    assert again.loss_scaler.loss_scale == 64.0
