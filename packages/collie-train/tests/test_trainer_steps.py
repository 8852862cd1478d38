"""A step is the same in every layout and with every optimizer: that of a bare loop over the global batch."""

import pytest
import torch
from torch.nn import functional as F
from toy_training import LR, ROWS, make_config, make_model, rows, sgd, snapshot

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.data import ColliePadder
from collie.interfaces import ConfigError, DataError, MissingExtraError
from collie.models import CollieModelForCausalLM
from collie.module import GPTLMLoss
from collie.optim import Lomo
from collie.testing import run_ranks, toy_llama_config


class Record(Callback):
    """Keep every step's loss."""

    def __init__(self, losses):
        self.losses = losses

    def on_train_batch_end(self, trainer, loss):
        self.losses.append(loss.item())


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
    trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=Record(losses))
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
        losses = []
        config = make_config(0, micro=10, train_epochs=15)
        model = make_model(config, torch.bfloat16)
        Trainer(model, config, optimizer=Lomo(model, lr=0.3), train_dataset=rows(), callbacks=Record(losses)).train()
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


def test_users_loss_is_averaged_over_the_rows_of_the_step():
    """Ten rows in micro-batches of 4, 4 and 2 rows: each row weighs the same, and the loss sees what it names."""

    def run(accumulate, micro):
        config = make_config(micro=micro, accumulate=accumulate)
        model = make_model(config)

        def loss_fn(logits, attention_mask, weight=2.0):
            assert logits.shape[:2] == attention_mask.shape
            per_row = (logits.float().square().mean(-1) * attention_mask).sum(-1) / attention_mask.sum(-1)
            return weight * per_row.mean()

        losses = []
        callback = Record(losses)
        optimizer = sgd(model.parameters())
        Trainer(model, config, loss_fn=loss_fn, optimizer=optimizer, train_dataset=rows(), callbacks=callback).train()
        return losses, model.head.weight.detach()

    (together,), weight = run_ranks(1, run, 1, 10)[0]
    (apart,), other = run_ranks(1, run, 3, 4)[0]
    assert apart == pytest.approx(together, rel=1e-5)
    torch.testing.assert_close(other, weight, atol=1e-6, rtol=0)


def test_a_subclass_of_the_loss_is_called():
    """Label smoothing in a subclass of GPTLMLoss changes the training."""

    class Smoothed(GPTLMLoss):
        def forward(self, logits, labels):
            targets = labels[:, 1:].flatten()
            return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, label_smoothing=0.5)

    def run(loss):
        config = make_config(micro=10)
        model = make_model(config)
        losses = []
        optimizer = sgd(model.parameters())
        Trainer(
            model, config, loss_fn=loss, optimizer=optimizer, train_dataset=rows(), callbacks=Record(losses)
        ).train()
        return losses

    assert run_ranks(1, run, Smoothed())[0] != pytest.approx(run_ranks(1, run, GPTLMLoss())[0], rel=1e-2)


def test_the_model_trains_in_training_mode_and_each_epoch_has_its_own_order():
    """After an evaluation put it in eval mode, too; two calls of train() go on through the epochs."""

    def run():
        config = make_config(micro=5, train_epochs=2, dataloader_num_workers=1)
        model = make_model(config)
        modes, orders = [], []

        class Watch(Callback):
            def on_train_batch_begin(self, trainer, batch):
                orders.append((trainer.epoch_idx, batch["input_ids"][:, :3].tolist()))
                model.eval()

            def on_train_batch_end(self, trainer, loss):
                modes.append(model.training)

        trainer = Trainer(model, config, optimizer=sgd(model.parameters()), train_dataset=rows(), callbacks=Watch())
        trainer.train()
        trainer.train()
        return modes, orders, trainer.global_batch_idx, trainer.total_steps

    modes, orders, last, total = run_ranks(1, run)[0]
    assert modes == [True] * 8
    assert [epoch for epoch, _ in orders] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({str(batch) for _, batch in orders}) == 8  # no epoch repeats another's order
    assert (last, total) == (7, 8)


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("name", ["sgd", "lomo"])
def test_a_model_of_transformers_trains_like_one_process(stage, name, tmp_path):
    """Two ranks end with the same weights as a bare loop, and save what transformers reads."""
    from transformers import AutoModelForCausalLM

    def make():
        torch.manual_seed(7)
        return AutoModelForCausalLM.from_config(toy_llama_config(initializer_range=0.4), dtype=torch.float32)

    def run():
        config = make_config(stage, micro=5)
        config.ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        model = make()
        optimizer = Lomo(model, lr=LR) if name == "lomo" else sgd(model.parameters())
        losses = []
        trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=Record(losses))
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        return losses

    def bare():
        model = make()
        optimizer = sgd(model.parameters())
        batch = ColliePadder()(rows())
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
        optimizer.step()
        return {key: value.detach() for key, value in model.named_parameters()}

    run_ranks(2, run)
    expected = run_ranks(1, bare)[0]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    for key, weight in saved.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[key], atol=1e-6, rtol=0)


def test_a_dropout_that_a_model_of_transformers_would_ignore_is_refused():
    def run():
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(toy_llama_config())
        with pytest.raises(ConfigError, match=r"dropout=0.1 .*LlamaForCausalLM"):
            Trainer(model, make_config(dropout=0.1), optimizer=sgd(model.parameters()), train_dataset=rows())
        return True

    assert run_ranks(1, run) == [True]


def test_ds_config_that_lomo_would_ignore_is_refused():
    def run():
        config = make_config()
        config.ds_config = {"gradient_clipping": 1.0}
        model = make_model(config)
        with pytest.raises(ConfigError, match=r"gradient_clipping.*Lomo"):
            Trainer(model, config, optimizer=Lomo(model, lr=LR), train_dataset=rows())
        return True

    assert run_ranks(1, run) == [True]


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
        with pytest.raises((ConfigError, MissingExtraError), match="data_provider"):  # the latter without collie-eval
            Trainer(model, config, data_provider=object())
        return True

    assert run_ranks(1, run) == [True]
