"""A train_fn that calls the model itself, with accumulation: every micro-batch counts, in every ZeRO stage."""

import math

import pytest
from resuming import Losses
from toy_training import make_config, make_model, rows, sgd

from collie.controller.trainer import Trainer
from collie.testing import run_ranks


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


def losses(stage, bad=None, **fields):
    """Of the five steps of two micro-batches; in step `bad` the first micro-batch's loss is NaN."""
    config = make_config(stage, micro=1, accumulate=2, **fields)
    model, seen, called = make_model(config), Losses(), []

    def train_fn(trainer, batch, step):
        first = step not in called
        called.append(step)
        loss = trainer.model(**batch).loss
        return loss * math.nan if first and step == bad else loss

    trainer = Trainer(
        model, config, optimizer=sgd(model.parameters()), train_dataset=rows(), train_fn=train_fn, callbacks=seen
    )
    trainer.train()
    return list(seen.losses.values())


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (1, 2), (1, 3), (2, 3)])
def test_all_micro_batches_are_in_the_update(ranks, stage):
    expected = run_ranks(ranks, lambda: losses(0, dp_size=ranks))[0]
    assert run_ranks(ranks, lambda: losses(stage, dp_size=ranks))[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_is_left_out_for_any_of_its_micro_batches(stage):
    found = run_ranks(2, lambda: losses(stage, bad=1, dp_size=2, on_nan="skip"))[0]
    assert [math.isnan(loss) for loss in found] == [False, True, *[False] * (len(found) - 2)] and len(found) > 2
