"""CheckpointCallback with what training resumes from: saved by number, by signal, resumed by "auto"."""

import os
import signal

import pytest
import torch
from toy_training import make_config, make_model, rows, snapshot

from collie.callbacks import Callback, CheckpointCallback, LoadBestModelCallback
from collie.controller.trainer import Trainer
from collie.events import EventReader, RunFolder, Step
from collie.interfaces import CheckpointError
from collie.testing import run_ranks
from collie.utils.monitor import LossMonitor


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


class Falling:
    """An evaluator whose score falls with each step."""

    def bind(self, context, model):
        self.context = context

    def eval(self, dataloader=None):
        return {"score": 10.0 - self.context.step()}


class Kill(Callback):
    """Send a signal to rank 1 after a step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_train_batch_end(self, trainer, loss):
        if trainer.global_batch_idx == self.step and trainer.topology.rank == 1:
            os.kill(os.getpid(), self.number)


def trained(folder, *callbacks, resume=None, **saving):
    """Two epochs of five steps on two ranks, evaluated after each epoch; saving as asked."""
    config = make_config(1, micro=1, train_epochs=2, eval_per_n_epochs=1)
    model = make_model(config)
    keeper = CheckpointCallback(folder, model_only=False, monitor="score", topk=1, **saving)
    trainer = Trainer(
        model, config, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01), train_dataset=rows(),
        callbacks=[keeper, *callbacks], evaluators=[Falling()], monitors=[LossMonitor(config)],
    )  # fmt: skip
    trainer.train(resume=resume)
    return trainer, keeper


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_stopped_training_resumes_from_what_the_signal_saved(tmp_path):
    """SIGTERM to one rank in the second epoch: a checkpoint beside the callback's own, from which "auto" goes on, and
    the callback with its counts; the weights are bitwise those of a training left alone."""

    def run():
        stopped, _ = trained(tmp_path / "a", Kill(6, signal.SIGTERM), every_n_batches=2, max=2)
        assert stopped.stopped and stopped.global_batch_idx == 7
        there = names(tmp_path / "a")
        resumed, keeper = trained(tmp_path / "a", resume="auto", every_n_batches=2, max=2)
        alone, _ = trained(tmp_path / "b", every_n_batches=2, max=2)
        state = keeper.on_save_checkpoint(resumed)
        return there, resumed.global_batch_idx, state, snapshot(resumed.model, resumed), snapshot(alone.model, alone)

    (there, last, state, weights, expected), _ = run_ranks(2, run)
    best = "epoch_0-batch_5-score_6"
    assert there == [best, "epoch_1-batch_1", "epoch_1-batch_3", "step-00000008"]
    assert last == 9 and all(torch.equal(weights[name], weight) for name, weight in expected.items())
    assert state["best"] == {best: 6.0} and state["regular"] == ["epoch_1-batch_3", "epoch_1-batch_5"]
    assert names(tmp_path / "a") == [best, "epoch_1-batch_3", "epoch_1-batch_5", "step-00000008"]
    assert names(tmp_path / "b") == [best, "epoch_1-batch_3", "epoch_1-batch_5"]


def test_the_best_model_of_before_the_stop_is_the_best_after(tmp_path):
    """The first epoch's model was best, and training stopped after: resumed, training ends with it."""

    def run():
        best = LoadBestModelCallback(tmp_path / "best", monitor="score")
        stopped, _ = trained(tmp_path / "a", best, Kill(5, signal.SIGTERM))
        assert stopped.stopped and (tmp_path / "best" / "best").exists()
        again = LoadBestModelCallback(tmp_path / "best", monitor="score")
        resumed, _ = trained(tmp_path / "a", again, resume="auto")
        one = snapshot(resumed.model, resumed)
        resumed.load_checkpoint(str(tmp_path / "a" / "epoch_0-batch_5-score_6"))
        return one, snapshot(resumed.model, resumed), (tmp_path / "best" / "best").exists()

    (ended, first, there), _ = run_ranks(2, run)
    assert all(torch.equal(ended[name], weight) for name, weight in first.items()) and not there


class Break(Callback):
    """Ends the training after a step, as a fault would."""

    def on_train_batch_end(self, trainer, loss):
        if trainer.global_batch_idx == 4:
            raise RuntimeError("a fault")


def test_a_run_that_is_resumed_from_outside_goes_on_or_says_why_not(tmp_path, monkeypatch):
    """As `collie-tui resume` writes it into job.json; not from its beginning as if nobody had asked."""
    run, folder = RunFolder.create(tmp_path / "runs", name="asked"), tmp_path / "kept"
    monkeypatch.setenv("COLLIE_RUN_DIR", str(run.path))

    def attempt(number, *callbacks):
        """The first step that it trained."""
        config = make_config(micro=1)
        model = make_model(config)
        keeper = CheckpointCallback(folder, every_n_batches=2, model_only=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        trainer = Trainer(
            model, config, optimizer=optimizer, train_dataset=rows(), callbacks=[keeper, *callbacks]
        )  # fmt: skip
        try:
            trainer.train()
        except (CheckpointError, RuntimeError) as error:
            return str(error)
        trainer._recorder.events.close()
        records = EventReader(run.events / f"rank-00000.a{number}.jsonl").read()
        return min(record.step for record in records if isinstance(record.event, Step))

    run.write_job({"attempt": 1, "resume": "auto"})
    [said] = run_ranks(1, attempt, 1)
    assert str(folder) in said and "collie-tui resume --anew" in said
    run.write_job({"attempt": 2, "resume": None})
    assert run_ranks(1, attempt, 2, Break()) == ["a fault"]
    run.write_job({"attempt": 3, "resume": "auto"})
    assert run_ranks(1, attempt, 3) == [4]
