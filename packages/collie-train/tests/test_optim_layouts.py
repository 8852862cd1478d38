"""Plain optimizers through DeepSpeed: elementwise ones in every layout, others where they get whole parameters."""

import pytest
import torch
from toy_training import make_config, make_model, rows, snapshot

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.interfaces import ConfigError
from collie.optim import Adan, Lion, SophiaG
from collie.testing import run_ranks

ELEMENTWISE = {
    "lion": lambda p: Lion(p, lr=1e-2, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, eps=1e-3),
}
OTHERS = {
    "adan": lambda p: Adan(p, lr=1e-2, eps=1e-3, max_grad_norm=1.0),
    "sophiag": lambda p: SophiaG(p, lr=1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-1),
}


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, loss):
        self.seen.append(float(loss))


def train(make, stage=0, micro=4, **sizes):
    """The losses and weights of ten rows, twice, in global batches of four; a dict is ds_config's optimizer."""
    config = make_config(stage, micro=micro, train_epochs=2, **sizes)
    model = make_model(config)
    optimizer = None
    if isinstance(make, dict):
        config.ds_config = {**config.ds_config, "optimizer": make}
    else:
        optimizer = make(model.parameters())
    losses = Losses()
    trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=[losses])
    trainer.train()
    return losses.seen, snapshot(model, trainer)


def same(ours, expected):
    """Losses to 1e-4, and weights but for signs of momenta that are as good as zero."""
    assert ours[0] == pytest.approx(expected[0], rel=2e-4)
    for name, weight in expected[1].items():
        if ours[1][name] is not None:
            assert (ours[1][name] - weight).abs().mean() < 2e-5


@pytest.fixture(scope="module")
def alone():
    """What one process makes of each."""
    return run_ranks(1, lambda: {name: train(make) for name, make in (ELEMENTWISE | OTHERS).items()}, timeout=100)[0]


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        (0, ["lion", "momentum"]),
        (1, ["lion", "adamw", "adagrad"]),
        (2, ["lion", "rmsprop"]),
        (3, ["lion", "adamw", "momentum", "adagrad"]),
    ],
)
def test_elementwise_optimizers_train_alike_in_every_zero_stage(alone, stage, names):
    """On flat shards as on whole parameters."""
    results, _ = run_ranks(2, lambda: {name: train(ELEMENTWISE[name], stage, 2) for name in names}, timeout=100)
    for name, result in results.items():
        same(result, alone[name])


def test_lion_trains_alike_on_parts_and_stages(alone):
    expected = alone["lion"]
    same(run_ranks(2, lambda: train(ELEMENTWISE["lion"], tp_size=2))[0], expected)
    staged = run_ranks(2, lambda: train(ELEMENTWISE["lion"], micro=2, accumulate=2, pp_size=2))
    assert staged[0][0] == pytest.approx(expected[0], rel=2e-4)


@pytest.mark.parametrize("name", list(OTHERS))
def test_others_train_on_whole_parameters_and_are_refused_on_pieces(alone, name):
    """Two replicas at stage 0 train as one process does; ZeRO, parts, and for ours stages, are refused by name."""
    same(run_ranks(2, train, OTHERS[name], 0, 2)[0], alone[name])

    def refused():
        reasons = []
        layouts = [{"stage": 1, "micro": 2}, {"tp_size": 2}]
        for sizes in [*layouts, {"pp_size": 2, "micro": 2, "accumulate": 2}] if name != "adafactor" else layouts:
            with pytest.raises(ConfigError) as error:
                train(OTHERS[name], **sizes)
            reasons.append(str(error.value))
        return reasons

    for reasons in run_ranks(2, refused):
        pieces = ("ZeRO stage 1", "tp_size=2", "pp_size=2")
        assert all(piece in reason for piece, reason in zip(pieces, reasons, strict=False))
        assert all("AdamW" in reason for reason in reasons)


def test_muon_trains_matrices_alone():
    """torch's own Muon takes two-dimensional parameters; it trains them at stage 0 and is refused on shards."""

    def run(stage):
        config = make_config(stage, micro=10, train_epochs=3)
        model = make_model(config)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.dim() == 2)
        optimizer = torch.optim.Muon([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses = Losses()
        Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=[losses]).train()
        return losses.seen

    [losses] = run_ranks(1, run, 0)
    assert losses[-1] < losses[0]

    def refused():
        with pytest.raises(ConfigError, match=r"Muon.*ZeRO stage 1"):
            run(1)

    run_ranks(1, refused)


@pytest.mark.parametrize(
    ("stage", "described", "name"),
    [
        (1, {"type": "Adagrad", "params": {"lr": 1e-2, "eps": 1e-3}}, "adagrad"),
        (
            3,
            {"type": "AdamW", "params": {"lr": 1e-2, "eps": 1e-3, "weight_decay": 0.01, "torch_adam": True}},
            "adamw",
        ),
    ],
)
def test_an_optimizer_of_ds_config_is_the_same_as_one_that_is_given(alone, stage, described, name):
    same(run_ranks(2, train, described, stage, 2)[0], alone[name])


def test_curvature_is_estimated_from_the_global_batch():
    """SophiaG in a user's train_fn: two ranks' estimates are averaged, so that weights end where one process's do."""

    def run(micro):
        config = make_config(0, micro=micro)
        model = make_model(config)
        optimizer = SophiaG(model.parameters(), lr=1e-2, rho=10.0)

        def train_fn(trainer, batch, step):
            trainer.model(**batch).loss.backward()
            optimizer.update_hessian()
            optimizer.zero_grad()
            return trainer.engine(**batch).loss

        same_size = [row for row in rows() if len(row["input_ids"]) == 5 and row["labels"].count(-100) == 1] * 4
        trainer = Trainer(model, config, optimizer=optimizer, train_fn=train_fn, train_dataset=same_size)
        trainer.train()
        hessian = optimizer.state[model.head.weight]["hessian"]
        return hessian, snapshot(model, trainer)["head.weight"]

    [(hessian, weight)] = run_ranks(1, run, 4)
    (ours, our_weight), _ = run_ranks(2, run, 2)
    assert hessian.abs().max() > 0
    torch.testing.assert_close(ours, hessian, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(our_weight, weight, rtol=0, atol=1e-5)


def test_curvature_without_gradients_is_refused():
    with pytest.raises(RuntimeError, match="update_hessian found no gradient"):
        SophiaG([torch.nn.Parameter(torch.zeros(2))]).update_hessian()
