"""CheckpointCallback and LoadBestModelCallback: what they save, keep, delete, and take up again."""

import json
import os
from typing import ClassVar

import pytest
import torch
from toy_training import make_config, make_model, rows, sgd, snapshot

from collie.callbacks import CheckpointCallback, LoadBestModelCallback, ResultsMonitor
from collie.controller.trainer import Trainer
from collie.events import Alert, EventReader, RunFolder
from collie.interfaces import CheckpointError, ConfigError
from collie.models import CollieModelForCausalLM
from collie.testing import run_ranks
from collie.utils.monitor import LossMonitor, Outlet


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


class Scores:
    """An evaluator whose results are known beforehand, one after another."""

    def __init__(self, *values):
        self.values = list(values)

    def bind(self, context, model):
        pass

    def eval(self, dataloader=None):
        return {"judge#score": self.values.pop(0), "ppl": 2.0}


def trained(callbacks, *values, epochs=2, kind=Trainer, **fields):
    """Two epochs of five steps; the Trainer, and what it saved when the epochs ended."""
    config = make_config(micro=2, train_epochs=epochs, eval_per_n_epochs=1 if values else 0, **fields)
    model = make_model(config)
    trainer = kind(
        model, config, optimizer=sgd(model.parameters()), train_dataset=rows(), callbacks=callbacks,
        evaluators=[Scores(*values)] if values else [],
    )  # fmt: skip
    trainer.train()
    trainer._recorder.events.close()
    return trainer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"every_n_epochs": 2}, ["epoch_2"]),
        ({"every_n_batches": 3}, ["epoch_0-batch_3", "epoch_1-batch_1", "epoch_1-batch_4"]),
        ({"every_n_epochs": 1, "every_n_batches": 4, "max": 2}, ["epoch_1-batch_3", "epoch_2"]),
        ({"last": True}, ["last"]),
    ],
)
def test_what_is_saved_how_often(arguments, expected, tmp_path):
    """Steps are counted over epochs; `max` keeps the newest. What was in the folder before stays."""
    (tmp_path / "saved" / "epoch_9").mkdir(parents=True)
    run_ranks(1, lambda: trained(CheckpointCallback(tmp_path / "saved", **arguments)) and None)
    assert names(tmp_path / "saved") == sorted([*expected, "epoch_9"])
    assert all((tmp_path / "saved" / name / "config.json").exists() for name in expected)


@pytest.mark.parametrize(
    ("values", "larger_better", "expected"),
    [
        ((1.0, 3.0, 2.0, 2.0), True, ["epoch_1-batch_5-judge_score_3", "epoch_2-batch_5-judge_score_2"]),
        ((1.0, 3.0, 2.0, 0.5), False, ["epoch_0-batch_5-judge_score_1", "epoch_3-batch_5-judge_score_0.5"]),
        ((1.0, float("nan")), True, ["epoch_0-batch_5-judge_score_1"]),
    ],
)
def test_the_best_are_kept(values, larger_better, expected, tmp_path):
    """Two of four; NaN is never among the best, and an equal value takes nobody's place."""

    def run():
        best = CheckpointCallback(tmp_path, monitor="score", larger_better=larger_better, topk=2)
        trained(best, *values, epochs=len(values))

    run_ranks(1, run)
    assert [name for name in names(tmp_path) if name != "runs"] == expected


def test_every_rank_saves_together_and_last_is_the_last(tmp_path):
    """On two ranks under ZeRO-3: the folder holds the weights of the end, and loads in one process."""

    def run():
        trainer = trained(
            CheckpointCallback(tmp_path / "saved", last=True), ds_config={"zero_optimization": {"stage": 3}}
        )
        return snapshot(trainer.model, trainer)

    weights, _ = run_ranks(2, run)
    alone = run_ranks(
        1, lambda: CollieModelForCausalLM.from_pretrained(str(tmp_path / "saved" / "last"), make_config()).state_dict()
    )[0]
    assert weights and all(torch.equal(alone[name], weight) for name, weight in weights.items())


class Full(Trainer):
    """A Trainer whose second save meets a full disk."""

    saves = 0

    def save_model(self, path, **arguments):
        self.saves += 1
        if self.saves == 2:
            raise CheckpointError(f"{path} could not be written: no space left on device.")
        super().save_model(path, **arguments)


def test_a_save_that_fails_deletes_nothing_and_is_an_alert(tmp_path):
    """`max` and `topk` keep what they have until something better is there."""

    def run():
        regular = CheckpointCallback(tmp_path / "regular", every_n_batches=2, max=1)
        folder = trained(regular, kind=Full, epochs=1).run_folder
        best = CheckpointCallback(tmp_path / "best", monitor="score", topk=1)
        trained(best, 1.0, 2.0, kind=Full)
        return str(folder)

    folder = run_ranks(1, run)[0]
    assert names(tmp_path / "regular") == ["epoch_0-batch_2"]
    assert names(tmp_path / "best") == ["epoch_0-batch_5-judge_score_1"]
    records = EventReader(RunFolder(folder).event_files()[0]).read()
    (alert,) = [record for record in records if isinstance(record.event, Alert)]
    assert alert.step == 3 and "epoch_0-batch_4 was not saved, and training goes on" in alert.event.message


def test_what_is_written_behind_the_training_replaces_only_when_complete(tmp_path):
    """Three checkpoints with max=1: the first goes when the second is whole, and not before."""
    seen = []

    class Behind(Trainer):
        complete = None

        def save_checkpoint(self, path, *, wait, then):
            assert not wait
            if self.complete is not None:
                self.complete()
            seen.append(names(tmp_path / "saved") if (tmp_path / "saved").exists() else [])
            os.makedirs(path)
            self.complete = lambda: then(path)

    def run():
        trainer = trained(
            CheckpointCallback(tmp_path / "saved", every_n_batches=1, max=1, model_only=False), kind=Behind, epochs=1
        )
        return seen, trainer.checkpoint_folder

    seen, folder = run_ranks(1, run)[0]
    one, two, three, four, five = (f"epoch_0-batch_{number}" for number in range(1, 6))
    assert seen == [[], [one], [two], [three], [four]]
    assert names(tmp_path / "saved") == [four, five] and folder == str(tmp_path / "saved")


def test_a_resumed_count_goes_on(tmp_path):
    """A state that has been through JSON: the next better model takes the place of the worse one that is there."""

    def run():
        first = CheckpointCallback(tmp_path, every_n_epochs=1, max=1, monitor="score", topk=1)
        trainer = trained(first, 1.0, epochs=1)
        state = json.loads(json.dumps(first.on_save_checkpoint(trainer)))
        state["regular"].append("../elsewhere")  # a checkpoint that came from somebody else deletes nothing
        again = CheckpointCallback(tmp_path, every_n_epochs=1, max=1, monitor="score", topk=1)
        again.on_load_checkpoint(trainer, state)
        trainer.callbacks.callbacks[:1] = [again]
        trainer.evaluators[0].values = [2.0]
        trainer.train()
        return again.on_save_checkpoint(trainer)

    state = run_ranks(1, run)[0]
    assert [name for name in names(tmp_path) if name != "runs"] == ["epoch_1-batch_5-judge_score_2", "epoch_2"]
    assert state["regular"] == ["epoch_2"] and state["best"] == {"epoch_1-batch_5-judge_score_2": 2.0}


def test_a_state_with_one_too_many_keeps_the_best(tmp_path):
    """A checkpoint is written before what it replaces is deleted, so its state has both; 2 is not among the best."""
    saved = []

    class Noting(Trainer):
        def save_model(self, path, **arguments):
            saved.append(os.path.basename(path))
            super().save_model(path, **arguments)

    def run():
        best = CheckpointCallback(tmp_path, monitor="score", topk=1)
        names_of = {"epoch_0-batch_5-judge_score_1": 1.0, "epoch_1-batch_5-judge_score_3": 3.0}
        best.on_load_checkpoint(None, {"folder": str(tmp_path), "regular": [], "best": names_of})
        for name in names_of:
            (tmp_path / name).mkdir()
        trained(best, 2.0, 4.0, kind=Noting)
        return best.on_save_checkpoint(None)["best"], saved

    name = "epoch_1-batch_5-judge_score_4"
    assert run_ranks(1, run) == [({name: 4.0}, [name])]
    assert names(tmp_path) == [name, "runs"]


def test_what_monitors_have_begun_goes_into_checkpoints():
    """A run of wandb, by its id, beside the states of the callbacks."""

    class Begun:
        begun: ClassVar[dict[str, str]] = {"wandb": "abcd1234"}

        def bind(self, folder):
            pass

        def state_dict(self):
            return self.begun

        def load_state_dict(self, state):
            self.begun = state

    def run():
        config = make_config()
        monitor = LossMonitor(config)
        monitor.monitor = Outlet([Begun()])
        trainer = Trainer(make_model(config), config, monitors=monitor)
        states = trainer.callbacks.on_save_checkpoint(trainer)
        trainer.callbacks.on_load_checkpoint(trainer, {"monitors": {"wandb": "ffff"}})
        return states, trainer.callbacks.on_save_checkpoint(trainer)

    assert run_ranks(1, run) == [({"monitors": {"wandb": "abcd1234"}}, {"monitors": {"wandb": "ffff"}})]


@pytest.mark.parametrize("delete", [True, False])
def test_the_best_model_is_there_at_the_end(delete, tmp_path):
    """Evaluations say 1, 3, 2: training ends with the weights of the second epoch."""

    def run():
        best = LoadBestModelCallback(tmp_path / "folder", monitor="score", delete_after_train=delete)
        ended = trained(best, 1.0, 3.0, 2.0, epochs=3)
        two = trained([], 1.0, 3.0, epochs=2)
        return snapshot(ended.model, ended), snapshot(two.model, two)

    ended, two = run_ranks(1, run)[0]
    assert all(torch.equal(ended[name], weight) for name, weight in two.items())
    assert (tmp_path / "folder" / "best").exists() is not delete


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "saves nothing: give every_n_epochs"),
        ({"every_n_epochs": -1}, "every_n_epochs=-1 is not a whole number of at least 0"),
        ({"every_n_batches": 2.5}, "every_n_batches=2.5 is not a whole number"),
        ({"topk": 2}, "monitor=None and topk=2 need each other"),
        ({"monitor": "score", "last": True}, "monitor='score' and topk=0 need each other"),
        ({"last": True, "protocol": "petrel"}, "folder='petrel://…'"),
        ({"monitor": 3, "topk": 1}, "monitor=3 is neither the name of a result nor a function"),
        ({"monitor": lambda: 1.0, "topk": 1}, "called with the results alone"),
    ],
)
def test_arguments_that_cannot_be(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        CheckpointCallback("folder", **arguments)


def test_a_choice_without_results_is_refused():
    def run():
        config = make_config()
        model = make_model(config)
        for callback in (CheckpointCallback("x", monitor="a", topk=1), LoadBestModelCallback("x", monitor="a")):
            with pytest.raises(ConfigError, match="the Trainer has no evaluators"):
                Trainer(model, config, callbacks=callback)
        with pytest.raises(ConfigError, match="needs monitor="):
            LoadBestModelCallback("x")

    run_ranks(1, run)


RESULTS = {
    "ppl": 3.0,
    "rouge#rouge1": 0.5,
    "rouge#rougeL": torch.tensor(0.25),
    "decode": ["a text"],
    "a#f": 1,
    "b#f": 2,
}


@pytest.mark.parametrize(
    ("monitor", "value", "name"),
    [
        ("ppl", 3.0, "ppl"),
        ("rougeL", 0.25, "rouge#rougeL"),
        (lambda results: results["ppl"] - 1, 2.0, "<lambda>"),
        (lambda results: results.get("acc"), None, "<lambda>"),
    ],
)
def test_the_number_that_is_followed(monitor, value, name):
    follows = ResultsMonitor(monitor)
    assert follows.value(RESULTS) == value and follows.monitor_name == name
    if isinstance(monitor, str):
        assert follows.value({"other": 1.0}) is None  # missing this time


@pytest.mark.parametrize(
    ("monitor", "sentence"),
    [
        ("rouge2", "not among the evaluation's results. Use one of them: 'ppl', 'rouge#rouge1', 'rouge#rougeL'"),
        ("f", "'f' is a part of 'a#f' and 'b#f'. Give a whole name"),
        ("decode", "'decode' is list, not a number"),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_those_that_are(monitor, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ResultsMonitor(monitor).value(RESULTS)
