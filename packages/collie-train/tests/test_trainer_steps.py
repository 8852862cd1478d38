"""A step is the same in every layout and with every optimizer: that of a bare loop over the global batch."""

import pytest
import torch
from torch.nn import functional as F
from toy_training import LR, ROWS, make_config, make_model, rows, sgd, snapshot

from collie.controller.trainer import Trainer
from collie.data import ColliePadder
from collie.interfaces import ConfigError, DataError
from collie.models import CollieModelForCausalLM
from collie.optim import Lomo
from collie.testing import run_ranks


def bare_loop(optimizer_of, order):
    """Train on whole global batches with torch alone; `order` gives each step's row numbers."""
    model = make_model(make_config())
    model.train()
    optimizer = optimizer_of(model.parameters())
    losses, norms = [], []
    for numbers in order:
        batch = ColliePadder()([rows()[n] for n in numbers])
        logits = model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {name: p.detach() for name, p in model.named_parameters()}, losses, norms


def order_of_steps():
    """Which rows each step of the Trainer takes, read off a loader over numbered rows."""
    from collie.data import CollieDataLoader

    numbered = [{"input_ids": [n]} for n in range(ROWS)]
    loader = CollieDataLoader(numbered, 4, shuffle=True, seed=42)
    return [[row[0] for micro in step for row in micro.batch["input_ids"].tolist()] for step in loader.iterate(0)]


def train(optimizer_name, stage, micro, accumulate):
    config = make_config(stage, micro, accumulate)
    model = make_model(config)
    optimizer = Lomo(model, lr=LR) if optimizer_name == "lomo" else sgd(model.parameters())
    losses = []
    from collie.callbacks import Callback

    class Record(Callback):
        def on_train_batch_end(self, trainer, loss):
            losses.append(loss.item())

    trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=Record())
    trainer.train()
    return snapshot(model, trainer), losses, trainer.global_batch_idx


@pytest.mark.parametrize("optimizer", ["sgd", "lomo"])
@pytest.mark.parametrize(
    ("ranks", "stage", "micro", "accumulate"),
    [(1, 0, 4, 1), (1, 0, 1, 4), (2, 0, 2, 1), (2, 1, 2, 1), (2, 2, 1, 2), (2, 3, 2, 1), (2, 3, 1, 2), (3, 0, 4, 1)],
)
def test_every_layout_equals_a_bare_loop(optimizer, ranks, stage, micro, accumulate):
    """Losses and weights to 1e-6, with gradients above norm 1 and a last step of two rows over all ranks."""
    per_step = ranks * micro * accumulate
    order = order_of_steps() if per_step == 4 else None
    if order is None:  # 3 ranks of 4 rows: all ten rows in one step
        order = [[n for step in order_of_steps() for n in step]]
    expected, expected_losses, norms = run_ranks(1, bare_loop, sgd, order)[0]
    assert max(norms) > 1, "the test would not see a clip at norm 1"
    results = run_ranks(ranks, train, optimizer, stage, micro, accumulate)
    for _, losses, last in results:
        assert losses == pytest.approx(expected_losses, abs=1e-5)
        assert last == len(order) - 1
    for name, weight in expected.items():
        torch.testing.assert_close(results[0][0][name], weight, atol=1e-6, rtol=0)


def test_adamw_in_bfloat16_keeps_float32_master_weights():
    """Steps of 1e-5 are lost in bfloat16 weights of order 1, and add up in DeepSpeed's float32 copies."""

    def run():
        config = make_config(1, micro=5, train_epochs=10)
        config.ds_config = {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}
        model = CollieModelForCausalLM.from_config(config)
        before = model.norm.weight.detach().clone()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.0)
        Trainer(model, config, optimizer=optimizer, train_dataset=rows()).train()
        return model.norm.weight.dtype, (model.norm.weight - before).abs().max().item()

    dtype, moved = run_ranks(1, run)[0]
    assert dtype is torch.bfloat16
    assert moved > 2e-3  # 20 steps of about 2e-4; half a bfloat16 step below 1 is 2e-3


def test_lomo_trains_in_bfloat16():
    """Loss falls over epochs, and weights stay in bfloat16."""

    def run():
        from collie.callbacks import Callback

        losses = []

        class Record(Callback):
            def on_train_batch_end(self, trainer, loss):
                losses.append(loss.item())

        config = make_config(0, micro=10, train_epochs=15)
        model = make_model(config, torch.bfloat16)
        Trainer(model, config, optimizer=Lomo(model, lr=0.3), train_dataset=rows(), callbacks=Record()).train()
        return losses[0], losses[-1], model.dtype

    first, last, dtype = run_ranks(1, run)[0]
    assert dtype is torch.bfloat16
    assert last < 0.7 * first


@pytest.mark.parametrize("stage", [0, 3])
def test_clipped_lomo_measures_the_gradient_that_it_applies(stage):
    """With dropout and recomputation, a step clipped to norm n has length lr·n, under ZeRO-3 too (second forward)."""

    def run():
        config = make_config(stage, micro=5, dropout=0.3, checkpointing=True)
        model = make_model(config)
        trainer = Trainer(model, config, optimizer=Lomo(model, lr=1.0, clip_grad_norm=0.25), train_dataset=rows()[:10])
        before = snapshot(model, trainer)
        trainer.train()
        after = snapshot(model, trainer)
        if trainer.topology.rank:
            return None
        return torch.stack([(after[n] - before[n]).norm() for n in before]).norm().item()

    assert run_ranks(2, run)[0] == pytest.approx(0.25, rel=1e-3)


def test_users_loss_gets_what_it_names():
    """A loss over (logits, labels, attention_mask) is averaged over the rows of the step."""

    def run():
        config = make_config(micro=4)
        model = make_model(config)
        before = model.head.weight.detach().clone()
        seen = []

        def loss_fn(logits, attention_mask, weight=2.0):
            seen.append((tuple(logits.shape[:2]), tuple(attention_mask.shape)))
            return weight * logits.float().square().mean()

        Trainer(model, config, loss_fn=loss_fn, optimizer=sgd(model.parameters()), train_dataset=rows()).train()
        return seen, torch.equal(before, model.head.weight)

    seen, unchanged = run_ranks(1, run)[0]
    assert [logits == mask for logits, mask in seen] == [True] * 3 and not unchanged


def test_a_loss_that_names_something_unknown_is_refused():
    def run():
        config = make_config()
        model = make_model(config)

        def loss_fn(logits, rewards):
            return logits.sum()

        with pytest.raises(ConfigError, match=r"rewards.*attention_mask.*logits"):
            Trainer(model, config, loss_fn=loss_fn, optimizer=sgd(model.parameters()), train_dataset=rows()).train()
        return True

    assert run_ranks(1, run) == [True]


@pytest.mark.parametrize("how", ["tensor", "float"])
def test_train_fn_is_called_once_a_micro_batch(how):
    """The Trainer backpropagates a tensor; with a float the function has stepped the engine. Same weights."""

    def run(way):
        config = make_config(micro=2, accumulate=2)
        model = make_model(config)
        steps = []

        def train_fn(trainer, batch, global_step):
            steps.append(global_step)
            loss = trainer.engine(**batch).loss
            if way == "tensor":
                return loss
            trainer.engine.backward(loss)
            trainer.engine.step()
            return loss.item()

        trainer = Trainer(model, config, train_fn=train_fn, optimizer=sgd(model.parameters()), train_dataset=rows()[:8])
        trainer.train()
        return steps, model.head.weight.detach()

    steps, weight = run_ranks(1, run, how)[0]
    assert steps == [0, 0, 1, 1]
    torch.testing.assert_close(weight, run_ranks(1, run, "tensor")[0][1], atol=1e-6, rtol=0)


def test_scheduler_steps_once_an_update():
    """Three updates of four micro-batches: the rate falls three times, for a plain optimizer and for LOMO."""

    def run(name):
        config = make_config(micro=1, accumulate=4)
        model = make_model(config)
        optimizer = Lomo(model, lr=1.0) if name == "lomo" else torch.optim.SGD(model.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        trainer = Trainer(model, config, optimizer=optimizer, lr_scheduler=scheduler, train_dataset=rows())
        trainer.train()
        made = Trainer(model, config, optimizer=optimizer, lr_scheduler=lambda o: ("made", o), train_dataset=rows())
        return trainer.lr, made.lr_scheduler[0]

    for name in ("sgd", "lomo"):
        assert run_ranks(1, run, name) == [(0.125, "made")]


def test_rows_that_cannot_be_trained_are_named():
    def run():
        config = make_config()
        model = make_model(config)
        bad = [*rows()[:2], {"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}]
        with pytest.raises(DataError, match="2"):
            Trainer(model, config, optimizer=sgd(model.parameters()), train_dataset=bad)
        return True

    assert run_ranks(1, run) == [True]


def test_training_needs_an_optimizer_and_rows():
    def run():
        config = make_config()
        model = make_model(config)
        with pytest.raises(ConfigError, match="optimizer="):
            Trainer(model, config, train_dataset=rows()).train()
        with pytest.raises(ConfigError, match="train_dataset="):
            Trainer(model, config, optimizer=sgd(model.parameters())).train()
        with pytest.raises(ConfigError, match="data_provider"):
            Trainer(model, config, data_provider=object())
        return True

    assert run_ranks(1, run) == [True]
