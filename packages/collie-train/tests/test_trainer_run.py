"""What surrounds the steps: evaluation, callbacks, monitors, events, requests, weights on disk."""

import os
import signal
from typing import ClassVar

import pytest
import torch
from toy_training import make_config, make_model, rows, sgd, snapshot

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.events import Alert, Bye, Checkpoint, EventReader, Hello, RunFolder, Step
from collie.interfaces import CheckpointError
from collie.models import CollieModelForCausalLM
from collie.optim import Lomo
from collie.testing import run_ranks
from collie.utils.monitor import LossMonitor


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)
    return tmp_path / "runs"


class SpyEvaluator:
    """An evaluator that notes after which step it was asked."""

    def __init__(self):
        self.steps = []

    def bind(self, context, model):
        self.context = context

    def eval(self, dataloader=None):
        self.steps.append(self.context.step())
        return {"score": float(len(self.steps))}


@pytest.mark.parametrize(
    ("every_steps", "every_epochs", "expected"), [(0, 1, [2, 5]), (2, 0, [1, 3, 5]), (0, 0, []), (2, 2, [1, 3, 5, 5])]
)
def test_evaluators_run_when_due(every_steps, every_epochs, expected):
    """Three steps an epoch, two epochs."""

    def run():
        config = make_config(train_epochs=2, eval_per_n_steps=every_steps, eval_per_n_epochs=every_epochs)
        model, spy = make_model(config), SpyEvaluator()
        Trainer(model, config, optimizer=sgd(model.parameters()), train_dataset=rows(), evaluators=[spy]).train()
        return spy.steps

    assert run_ranks(1, run) == [expected]


def test_callbacks_hear_everything_in_order():
    class Diary(Callback):
        def __init__(self):
            self.lines = []

        def on_setup_parallel_model(self, trainer):
            self.lines.append("model")

        def on_after_trainer_initialized(self, trainer):
            self.lines.append("ready")

        def on_train_begin(self, trainer):
            self.lines.append("train")

        def on_train_epoch_begin(self, trainer):
            self.lines.append(f"epoch {trainer.epoch_idx}")

        def on_train_batch_begin(self, trainer, batch):
            self.lines.append("batch")

        def on_train_batch_end(self, trainer, loss):
            assert loss.dim() == 0
            self.lines.append(f"step {trainer.global_batch_idx}")

        def on_evaluate_begin(self, trainer):
            self.lines.append("evaluate")

        def on_evaluate_end(self, trainer, results):
            self.lines.append(results)

        def on_train_epoch_end(self, trainer):
            self.lines.append("epoch ends")

        def on_train_end(self, trainer):
            self.lines.append("end")

    def run():
        config = make_config(micro=10, eval_per_n_epochs=1)
        model, diary = make_model(config), Diary()
        Trainer(
            model, config, optimizer=sgd(model.parameters()), train_dataset=rows(), callbacks=diary,
            evaluators=SpyEvaluator(),
        ).train()  # fmt: skip
        return diary.lines

    assert run_ranks(1, run) == [
        [
            *("model", "ready", "train", "epoch 0", "batch", "step 0", "epoch ends"),
            *("evaluate", {"score": 1.0}, "end"),
        ]
    ]


def _events(folder):
    return [EventReader(path).read() for path in folder.event_files()]


def test_every_rank_writes_its_events(runs):
    """Hello, one step event a step with that rank's tokens and the global loss, the monitors' metrics, bye."""

    def run():
        config = make_config(micro=2)
        model = make_model(config)
        trainer = Trainer(
            model, config, optimizer=Lomo(model, lr=0.1, clip_grad_norm=1.0), train_dataset=rows(),
            monitors=[LossMonitor(config)],
        )  # fmt: skip
        trainer.train()
        trainer._recorder.events.close()
        return str(trainer.run_folder)

    folders = run_ranks(2, run)
    assert folders[0] == folders[1] and folders[0].startswith(str(runs))
    folder = RunFolder(folders[0])
    assert folder.read_job()["managed"] is False
    ranks = _events(folder)
    assert len(ranks) == 2
    total_tokens = 0
    losses = []
    for number, records in enumerate(ranks):
        assert isinstance(records[0].event, Hello) and records[0].event.dp == number
        assert records[-1].event == Bye(outcome="finished")
        steps = [r for r in records if isinstance(r.event, Step)]
        assert [r.step for r in steps] == [0, 1, 2] and {r.event.total for r in steps} == {3}
        assert all(r.event.seconds > 0 and r.event.memory > 1e6 and r.event.grad_norm > 1 for r in steps)
        losses.append([r.event.loss for r in steps])
        total_tokens += sum(r.event.tokens for r in steps)
        assert [r.event.value for r in records if r.event.__class__.__name__ == "Metric"] == losses[-1]
    assert losses[0] == losses[1]
    assert total_tokens == sum(len(row["input_ids"]) for row in rows())


def test_trainers_of_one_process_share_the_file(runs):
    """One hello, one count of lines, no second run folder."""

    def run():
        config = make_config()
        model = make_model(config)
        optimizer = sgd(model.parameters())
        for _ in range(2):
            trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows())
            trainer.train()
        trainer._recorder.events.close()
        return str(trainer.run_folder)

    folder = RunFolder(run_ranks(1, run)[0])
    assert [path.name for path in runs.iterdir()] == [folder.id]
    reader = EventReader(folder.event_files()[0])
    records = reader.read()
    assert [r.seq for r in records] == list(range(len(records))) and reader.gaps == 0
    assert sum(isinstance(r.event, Hello) for r in records) == 1
    assert [r.step for r in records if isinstance(r.event, Step)] == [0, 1, 2, 0, 1, 2]


def test_a_tokenizer_that_cannot_be_written_stops_every_rank(tmp_path):
    class Full:
        def save_pretrained(self, path):
            raise OSError("no space left on device")

    def run():
        config = make_config()
        model = make_model(config)
        with pytest.raises(CheckpointError, match="no space left"):
            Trainer(model, config, tokenizer=Full()).save_model(str(tmp_path / "saved"))
        return True

    assert run_ranks(2, run, timeout=30) == [True, True]


class StopAfter(Callback):
    """Ask for a stop from inside, after a step, in the way a test chooses."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_train_batch_end(self, trainer, loss):
        if trainer.global_batch_idx == self.step:
            self.act(trainer)


class Keeping(Trainer):
    """A Trainer that notes when and where it would save what training resumes from."""

    saved: ClassVar[list[tuple[int, str]]] = []

    def save_checkpoint(self, path, **arguments):
        self.saved.append((self.global_batch_idx, path))


def _request(kind):
    def ask(trainer):
        if trainer.topology.rank == 0:
            RunFolder(trainer.run_folder).request(kind)
            trainer._recorder._next_poll = 0.0

    return ask


def _signal_rank_one(number):
    def send(trainer):
        if trainer.topology.rank == 1:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # torchrun and a scheduler may both send it

    return send


@pytest.mark.parametrize(
    ("act", "stops", "saves"),
    [
        (_request("stop"), True, False),
        (_request("checkpoint"), False, True),
        (_signal_rank_one(signal.SIGTERM), True, True),
        (_signal_rank_one(signal.SIGUSR1), False, True),
        (_signal_rank_one(signal.SIGUSR2), False, True),
    ],
    ids=["stop request", "checkpoint request", "TERM", "USR1", "USR2"],
)
def test_what_one_rank_hears_all_do_after_the_same_step(act, stops, saves):
    """Asked after step 3, whoever is asked: after the next step all save once, and stop where that was asked."""

    def run():
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]
        config = make_config(micro=1, train_epochs=2)
        model = make_model(config)
        trainer = Keeping(
            model, config, optimizer=sgd(model.parameters()), train_dataset=rows(), callbacks=StopAfter(3, act)
        )
        trainer.train()
        trainer._recorder.events.close()
        after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]
        pending = RunFolder(trainer.run_folder).pending()
        return trainer.global_batch_idx, trainer.saved, str(trainer.run_folder), before == after, pending

    results = run_ranks(2, run)
    folder = results[0][2]
    saved = [(4, f"{folder}/checkpoints/step-00000005")] if saves else []
    assert results == [(4 if stops else 9, saved, folder, True, [])] * 2
    for records in _events(RunFolder(folder)):
        assert records[-1].event == Bye(outcome="stopped" if stops else "finished")


def test_a_checkpoint_that_cannot_be_saved_is_an_alert():
    """Training goes on, and whoever watches is told."""

    class Full(Trainer):
        def save_checkpoint(self, path, **arguments):
            raise CheckpointError("no space left on device")

    def run():
        config = make_config(micro=1)
        model = make_model(config)
        act = StopAfter(1, lambda trainer: os.kill(os.getpid(), signal.SIGUSR1))
        trainer = Full(model, config, optimizer=sgd(model.parameters()), train_dataset=rows(), callbacks=act)
        trainer.train()
        trainer._recorder.events.close()
        return trainer.global_batch_idx, str(trainer.run_folder)

    last, folder = run_ranks(1, run)[0]
    (records,) = _events(RunFolder(folder))
    (alert,) = [record for record in records if isinstance(record.event, Alert)]
    assert last == 9 and alert.step == 2 and alert.event.code == "checkpoint"
    assert alert.event.message == "the checkpoint that was asked for was not saved: no space left on device"


def test_a_failure_is_written_down():
    """The last word of a run that breaks says why."""

    def run():
        config = make_config()
        model = make_model(config)

        def break_down(trainer):
            raise RuntimeError("the roof fell in")

        trainer = Trainer(
            model, config, optimizer=sgd(model.parameters()), train_dataset=rows(), callbacks=StopAfter(1, break_down)
        )
        with pytest.raises(RuntimeError, match="roof"):
            trainer.train()
        trainer._recorder.events.close()
        return str(trainer.run_folder)

    (records,) = _events(RunFolder(run_ranks(1, run)[0]))
    assert records[-1].event == Bye(outcome="failed", message="RuntimeError: the roof fell in")


def test_a_run_without_a_folder_trains(monkeypatch, tmp_path):
    """A file where the root of all runs should be: training goes on unrecorded."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "file" / "runs"))

    def run():
        config = make_config()
        model = make_model(config)
        trainer = Trainer(model, config, optimizer=sgd(model.parameters()), train_dataset=rows())
        trainer.train()
        return trainer.run_folder, trainer.global_batch_idx

    assert run_ranks(1, run) == [(None, 2)]


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_loaded_weights_replace_the_optimizers_copies(stage, tmp_path):
    """In bfloat16 the optimizer steps float32 copies: a tiny step after load_model must start from what was loaded."""

    def run():
        config = make_config(stage, micro=10)
        config.ds_config = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}}
        model = CollieModelForCausalLM.from_config(config)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows())
        trainer.save_model(str(tmp_path / "start"))
        start = snapshot(model, trainer)
        trainer.train()
        moved = snapshot(model, trainer)
        trainer.load_model(str(tmp_path / "start"))
        optimizer.param_groups[0]["lr"] = 1e-9
        trainer.train()
        end = snapshot(model, trainer)
        return [max((a[n] - b[n]).abs().max().item() for n in a) for a, b in ((start, moved), (start, end))]

    away, back = run_ranks(1, run)[0]
    assert away > 0.05 and back == 0.0


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 1), (2, 3)])
def test_saved_weights_load_anywhere(ranks, stage, tmp_path):
    """What one layout saves, it reads back, and so does one process; the run knows where and how large it is."""

    def save():
        config = make_config(stage, micro=4)
        model = make_model(config)
        trainer = Trainer(model, config, optimizer=sgd(model.parameters()), train_dataset=rows())
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        saved_after = trainer.global_batch_idx
        saved = snapshot(model, trainer)
        trainer.train()
        trainer.load_model(str(tmp_path / "saved"))
        loaded = snapshot(model, trainer)
        trainer._recorder.events.close()
        if trainer.topology.rank:
            return None
        records = EventReader(RunFolder(trainer.run_folder).event_files()[0]).read()
        (checkpoint,) = [record for record in records if isinstance(record.event, Checkpoint)]
        size = sum(file.stat().st_size for file in (tmp_path / "saved").iterdir())
        assert (checkpoint.event.path, checkpoint.event.bytes) == (str(tmp_path / "saved"), size)
        assert checkpoint.step == saved_after
        return saved, loaded

    def read():
        model = CollieModelForCausalLM.from_pretrained(str(tmp_path / "saved"), config=make_config())
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    saved, loaded = run_ranks(ranks, save)[0]
    alone = run_ranks(1, read)[0]
    for name, weight in saved.items():
        assert torch.equal(loaded[name], weight) and torch.equal(alone[name], weight)


def test_eval_dataset_without_collie_eval_says_what_to_install():
    """In an environment that has collie-eval the same call makes an evaluator."""
    from collie.interfaces import MissingExtraError

    def has_eval():
        try:
            import collie.controller.evaluator  # noqa: F401
        except ImportError:
            return False
        return True

    def run():
        config = make_config()
        model = make_model(config)
        if not has_eval():
            with pytest.raises(MissingExtraError, match=r"collie-train\[eval\]"):
                Trainer(model, config, eval_dataset=rows())
            return 1
        return len(Trainer(model, config, eval_dataset=rows()).evaluators)

    assert run_ranks(1, run) == [1]
