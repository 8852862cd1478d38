"""A loss or a gradient that is NaN or infinite: who is told what, and what becomes of the weights."""

import math

import pytest
import torch
from toy_training import make_config, make_model, rows, sgd, snapshot

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.events import Alert, EventReader, RunFolder, Step
from collie.interfaces import ConfigError, NonFiniteError
from collie.optim import Lomo
from collie.testing import run_ranks


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


def poisoned(row):
    """The ten rows, and a loss function that gives NaN where it meets one of them."""
    marked = [{**one, "weight": [math.nan if number == row else 1.0]} for number, one in enumerate(rows())]

    def loss(logits, labels, weight):
        picked = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return picked * weight.mean()

    return marked, loss


def steps_of(trainer):
    return [
        [number for batch in trainer.train_dataloader.rows_at(0, step) for number in batch]
        for step in range(trainer.steps_per_epoch)
    ]


@pytest.mark.parametrize(("ranks", "stage", "accumulate"), [(1, 0, 2), (2, 0, 1), (2, 3, 1)])
def test_a_loss_that_is_nan_stops_every_rank_naming_the_row(ranks, stage, accumulate):
    """One row of ten is bad, in micro-batches of one row: the message has its number, its rank, and its step."""

    def run():
        data, loss = poisoned(7)
        config = make_config(stage, micro=1, accumulate=accumulate)
        model = make_model(config)
        trainer = Trainer(model, config, optimizer=sgd(model.parameters()), loss_fn=loss, train_dataset=data)
        with pytest.raises(NonFiniteError) as caught:
            trainer.train()
        mine = steps_of(trainer)
        step = trainer.global_batch_idx
        return step, 7 in mine[step], str(caught.value)

    results = run_ranks(ranks, run)
    assert len({(step, text) for step, _, text in results}) == 1
    (rank,) = [rank for rank, (_, has, _) in enumerate(results) if has]
    step, _, text = results[0]
    assert text.startswith(f"step {step}: the loss is nan, and ")
    assert f"Rows of train_dataset in it: rank {rank}: 7." in text


def test_the_error_says_whether_the_weights_are_harmed():
    """DeepSpeed leaves the update out under ZeRO; without, the weights have taken it."""

    def run(stage):
        data, loss = poisoned(7)
        config = make_config(stage, micro=10)
        model = make_model(config)
        trainer = Trainer(model, config, optimizer=sgd(model.parameters()), loss_fn=loss, train_dataset=data)
        with pytest.raises(NonFiniteError) as caught:
            trainer.train()
        harmed = any(weight.isnan().any() for weight in snapshot(model, trainer).values())
        return harmed, "the weights have taken the update" in str(caught.value)

    assert run_ranks(1, run, 0) == [(True, True)]
    assert run_ranks(1, run, 1) == run_ranks(1, run, 3) == [(False, False)]


class Norms(Callback):
    """Keep what is reported of the gradient's norm."""

    def __init__(self):
        self.found = []

    def on_train_begin(self, trainer):
        write = trainer._recorder.write

        def listen(event, *, step):
            if isinstance(event, Step):
                self.found.append(event.grad_norm)
            write(event, step=step)

        trainer._recorder.write = listen


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_skip_trains_as_if_the_bad_step_had_not_been(stage):
    """The weights after an epoch are those of the other steps alone, whichever part of DeepSpeed leaves it out."""

    def run(bad, only=None):
        data, loss = poisoned(bad)
        config = make_config(stage, micro=5, on_nan="skip")
        model, norms = make_model(config), Norms()
        trainer = Trainer(
            model, config, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1), loss_fn=loss,
            train_dataset=data, callbacks=norms,
            lr_scheduler=lambda made: torch.optim.lr_scheduler.ExponentialLR(made, 0.5),
        )  # fmt: skip
        norms.on_train_begin(trainer)
        for step, micro_batches in enumerate(trainer.train_dataloader.iterate(0)):
            if only in (None, step):
                trainer._update(micro_batches)
        trainer._recorder.events.close()
        return snapshot(model, trainer), trainer.lr, norms.found, steps_of(trainer), str(trainer.run_folder)

    weights, lr, norms, steps, folder = run_ranks(1, run, 7)[0]
    (bad,) = [number for number, made in enumerate(steps) if 7 in made]
    assert not math.isfinite(norms[bad]) and math.isfinite(norms[1 - bad]) and lr == pytest.approx(0.005)
    records = EventReader(RunFolder(folder).event_files()[0]).read()
    (alert,) = [record.event for record in records if isinstance(record.event, Alert)]
    assert alert.code == "not_finite" and "the loss is nan, and the update was left out" in alert.message
    alone, *_ = run_ranks(1, run, -1, 1 - bad)[0]
    assert all(torch.equal(weight, alone[name]) for name, weight in weights.items())


def test_skip_is_refused_where_updates_are_made_on_the_way():
    def run():
        config = make_config(on_nan="skip")
        model = make_model(config)
        with pytest.raises(ConfigError, match=r"on_nan='skip'.*Lomo has made most of it"):
            Trainer(model, config, optimizer=Lomo(model, lr=0.1), train_dataset=rows())

    run_ranks(1, run)


def test_ignore_goes_on():
    def run():
        data, loss = poisoned(7)
        config = make_config(micro=5, on_nan="ignore")
        model = make_model(config)
        trainer = Trainer(model, config, optimizer=sgd(model.parameters()), loss_fn=loss, train_dataset=data)
        trainer.train()
        return trainer.global_batch_idx

    assert run_ranks(1, run) == [1]
