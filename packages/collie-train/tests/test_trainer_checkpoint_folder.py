"""Checkpoints on a file system: complete or not there, damaged and refused, replaced without a moment of neither."""

import json
import os
import resource
import shutil
import signal
import tempfile
import threading
import warnings

import fsspec
import pytest
import torch
from resuming import Losses, adamw, lomo, momentum, train, trainer_for
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.controller.trainer._checkpoint import _folder, _writer
from collie.events import Alert, Checkpoint, EventReader, RunFolder
from collie.interfaces import CheckpointError
from collie.models import CollieModelForCausalLM
from collie.testing import run_ranks, toy_llama_config


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


def saved(path, optimizer=lomo, **arguments):
    """A checkpoint of a run of two steps."""

    def run():
        trainer = trainer_for(optimizer, [], micro=5, **arguments)
        trainer.train()
        trainer.save_checkpoint(path)

    run_ranks(1, run)
    return path


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """One checkpoint for tests that damage a copy of it."""
    folder = tmp_path_factory.mktemp("ready")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLIE_RUNS", str(folder / "runs"))
        return saved(folder / "c")


def load(path, optimizer=lomo, **arguments):
    """What load_checkpoint says; the error, or the position."""

    def run():
        trainer = trainer_for(optimizer, [], **{"micro": 5, **arguments})
        trainer.load_checkpoint(path)
        return trainer.global_batch_idx

    return run_ranks(1, run, return_exceptions=True)[0]


def test_what_a_checkpoint_is(tmp_path):
    """A Hugging Face folder, tensors of the optimizer under the same names, JSON; and nothing else."""
    path = saved(tmp_path / "c", adamw)
    files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert files == {
        "checkpoint.json",
        "config.json",
        "model.safetensors",
        "training/optimizer.index.json",
        "training/optimizer.json",
        "training/optimizer.safetensors",
        "training/rank-00000.safetensors",
        "training/state.json",
    }
    assert os.listdir(tmp_path).count("c") == 1 and not list(tmp_path.glob(".c*"))
    model = AutoModelForCausalLM.from_pretrained(path)
    index = json.loads((path / "training/optimizer.index.json").read_text())["weight_map"]
    names = {name for name, _ in model.named_parameters()}
    assert set(index) == {f"{key}/{name}" for key in ("exp_avg", "exp_avg_sq") for name in names}
    ids = torch.tensor([[5, 6, 7]])
    ours = run_ranks(1, lambda: CollieModelForCausalLM.from_pretrained(path)(ids).logits.detach())[0]
    torch.testing.assert_close(ours, model(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / "checkpoint.json").unlink(), "was not written to its end"),
        (lambda path: (path / "checkpoint.json").write_text("{"), "checkpoint.json is damaged"),
        (lambda path: (path / "training/state.json").unlink(), "training/state.json is missing"),
        (lambda path: os.truncate(path / "model.safetensors", 900), "model.safetensors has 900 bytes, and"),
        (lambda path: _flip(path / "model.safetensors"), "checksums differ"),
        (lambda path: path.rename(path.with_name("elsewhere")), "does not exist"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_its_reason(tmp_path, ready, damage, words):
    path = shutil.copytree(ready, tmp_path / "c")
    damage(path)
    error = load(path)
    assert isinstance(error.exception, CheckpointError) and words in str(error.exception)


def _flip(file):
    with open(file, "r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)[0]
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last ^ 1]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optimizer": momentum}, "the optimizer Lomo, and this run has SGD"),
        ({"dtype": torch.bfloat16}, "weights in float32, and this run has bfloat16"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(ready, arguments, words):
    error = load(ready, **arguments)
    assert isinstance(error.exception, CheckpointError) and words in str(error.exception)


def test_a_position_is_counted_in_rows(tmp_path):
    """After one of two steps of five rows: steps of one row begin at the sixth, steps of four rows at none of them."""
    path = tmp_path / "c"

    def run():
        train(lomo, Losses(0, path), micro=5)

    def go_on(micro):
        with pytest.warns(UserWarning, match="a step has 1 rows here and had 5"):
            return train(lomo, Losses(), resume=path, micro=micro)[0]

    run_ranks(1, run)
    assert list(run_ranks(1, go_on, 1)[0]) == [1, 2, 3, 4, 5]
    error = load(path, micro=4)
    assert "has seen 5 rows of its epoch in steps of 5" in str(error.exception)
    error = load(path, seed=7)
    assert "begun with seed=42, and config.seed gives seed=7" in str(error.exception)


def test_auto_takes_the_newest_whole_one(tmp_path):
    """Of callbacks that have a folder, and of the run's; damaged ones are passed over, and without any it begins."""

    class Saver(Losses):
        checkpoint_folder = tmp_path / "kept"

        def on_train_batch_end(self, trainer, loss):
            super().on_train_batch_end(trainer, loss)
            if trainer.global_batch_idx < 3:
                trainer.save_checkpoint(self.checkpoint_folder / f"step-{trainer.global_batch_idx}", wait=False)

    def run():
        return sorted(train(lomo, Saver(), resume="auto", train_epochs=2, micro=5)[0])

    assert run_ranks(1, run) == [[0, 1, 2, 3]]
    assert run_ranks(1, run) == [[3]]
    _flip(tmp_path / "kept/step-2/model.safetensors")
    (tmp_path / "kept/step-1/checkpoint.json").unlink()

    def warned():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return run(), [str(one.message) for one in caught]

    ((steps, said),) = run_ranks(1, warned)
    assert steps == [1, 2, 3]
    (text,) = [text for text in said if "An older one is looked for" in text]
    assert "step-2/model.safetensors is damaged" in text


def test_an_interrupted_replacement_leaves_the_one_before(tmp_path, ready, monkeypatch):
    """The moment between the two renames: whoever looks for the checkpoint finds the older one under its other name."""
    path = shutil.copytree(ready, tmp_path / "c")

    def run():
        trainer = trainer_for(lomo, [], micro=5, train_epochs=2)
        trainer.train()
        rename = _folder.Path.rename

        def renamed(self, target):
            if ".partial." in self.name:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)

        monkeypatch.setattr(_folder.Path, "rename", renamed)
        trainer.save_checkpoint(path)

    error = run_ranks(1, run, return_exceptions=True)[0]
    assert "SIGKILL" in str(error) and not path.exists()
    assert load(path) == 1
    saved(path)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "runs"] == ["c"]


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")

    def run():
        trainer_for(lomo, [], micro=5).save_checkpoint(tmp_path / "thesis")

    error = run_ranks(1, run, return_exceptions=True)[0]
    assert "exists and is no checkpoint, so it is not replaced" in str(error.exception)
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_a_full_disk_alerts_and_training_goes_on(tmp_path, ready):
    """Files may not grow beyond 20 kB: the checkpoint of before stays, and nothing is left of the new one."""
    path = shutil.copytree(ready, tmp_path / "c")

    class Full(Losses):
        def on_train_batch_end(self, trainer, loss):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            super().on_train_batch_end(trainer, loss)

    def run():
        trainer = trainer_for(lomo, Full(0, path), micro=5)
        trainer.train()
        with pytest.raises(CheckpointError, match=r"could not be written.*File too large"):
            trainer.save_checkpoint(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        trainer._recorder.events.close()
        return len(trainer.callbacks.callbacks[0].losses), str(trainer.run_folder)

    ((steps, folder),) = run_ranks(1, run)
    assert steps == 2
    events = [record.event for record in EventReader(RunFolder(folder).event_files()[0]).read()]
    (alert,) = [event for event in events if isinstance(event, Alert)]
    assert alert.code == "checkpoint" and "File too large" in alert.message and str(path) in alert.message
    assert not [event for event in events if isinstance(event, Checkpoint)]
    assert load(path) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c", "runs"]


def test_a_rank_that_cannot_write_is_heard_on_all(tmp_path):
    def run():
        trainer = trainer_for(adamw, [], stage=1, micro=2)
        if trainer.topology.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
        trainer.save_checkpoint(tmp_path / "c")

    errors = run_ranks(2, run, return_exceptions=True)
    assert all("File too large" in str(error.exception) for error in errors)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["runs"]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The writer is held until two more steps are done; then the next checkpoint waits for it."""
    released = threading.Event()
    write = _writer.write_tensors
    monkeypatch.setattr(_writer, "write_tensors", lambda *arguments: (released.wait(60), write(*arguments))[1])

    class Watch(Losses):
        def on_train_batch_end(self, trainer, loss):
            super().on_train_batch_end(trainer, loss)
            if trainer.global_batch_idx == 2:
                assert not self.path.exists()
                released.set()
                trainer.save_checkpoint(self.path.with_name("later"), wait=False)
                assert self.path.exists()

    def run():
        return train(lomo, Watch(0, tmp_path / "c"), micro=5, train_epochs=2)[0]

    expected = run_ranks(1, run)[0]
    assert list(expected) == [0, 1, 2, 3] and (tmp_path / "later/checkpoint.json").exists()


def test_states_of_callbacks_and_schedulers(tmp_path):
    class Keeps(Callback):
        seen = None

        def on_save_checkpoint(self, trainer):
            return {"best": float("-inf"), "by epoch": {3: (1, 2)}}

        def on_load_checkpoint(self, trainer, states):
            self.seen = states

    class Holds(Keeps):
        def on_save_checkpoint(self, trainer):
            return {"function": print}

    def run():
        trainer = trainer_for(momentum, Keeps(), micro=5)
        milestones = torch.optim.lr_scheduler.MultiStepLR(trainer.optimizer, [1, 1, 3], gamma=0.1)
        trainer.lr_scheduler = trainer._saving._run.lr_scheduler = milestones
        trainer.train()
        trainer.save_checkpoint(tmp_path / "c")
        before = milestones.state_dict() | {"milestones": dict(milestones.milestones)}
        trainer.train()
        trainer.load_checkpoint(tmp_path / "c")
        trainer.callbacks.callbacks.append(Holds())
        with pytest.raises(CheckpointError, match=r"callback Holds \(function\) holds a builtin_function_or_method"):
            trainer.save_checkpoint(tmp_path / "d")
        after = milestones.state_dict() | {"milestones": dict(milestones.milestones)}
        return trainer.callbacks.callbacks[0].seen, before == after, trainer.global_batch_idx, trainer.lr

    ((seen, equal, step, rate),) = run_ranks(1, run)
    assert seen == {"best": float("-inf"), "by epoch": {3: (1, 2)}}
    assert equal and step == 1 and rate == pytest.approx(0.05 * 0.2 * 0.01)
    assert not (tmp_path / "d").exists() and not list(tmp_path.glob(".d*"))


@pytest.mark.parametrize("stage", [0, 3])
def test_models_of_transformers(tmp_path, stage):
    """Their names are their own; the folder is one that they load."""
    config = LlamaConfig(**toy_llama_config().to_diff_dict() | {"tie_word_embeddings": True})

    def make(callback):
        from toy_training import make_config, rows

        torch.manual_seed(1)
        run = make_config(stage=stage, micro=2)
        model = LlamaForCausalLM(config)
        return Trainer(model, run, optimizer=adamw(model), train_dataset=rows(), callbacks=callback)

    def run():
        first, second = Losses(0, tmp_path / "c"), Losses()
        make(first).train()
        make(second).train(resume=tmp_path / "c")
        return first.losses, second.losses

    for losses, resumed in run_ranks(2, run):
        assert resumed == {step: loss for step, loss in losses.items() if step > 0} and resumed
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    assert isinstance(loaded, LlamaForCausalLM)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_any_file_system(tmp_path):
    """On memory://: saved, replaced, resumed, found by auto; what an interruption left is not taken for one."""

    class Kept(Losses):
        checkpoint_folder = "memory://run/kept"

    def run():
        system = fsspec.filesystem("memory")
        first = Kept(0, "memory://run/kept/step-0")
        train(lomo, first, micro=5)
        assert system.exists("/run/kept/step-0/config.json")
        second = Losses()
        train(lomo, second, resume="memory://run/kept/step-0", micro=5)
        trainer = trainer_for(lomo, Kept(), micro=5, train_epochs=2)
        trainer.train(resume="auto")
        trainer.save_checkpoint("memory://run/kept/step-0")
        names = sorted(path.rpartition("/")[2] for path in system.ls("/run/kept", detail=False))
        again = trainer_for(lomo, [], micro=5)
        again.load_checkpoint("memory://run/kept/step-0")
        system.pipe_file("/run/kept/step-0/checkpoint.json.partial", b"")
        with pytest.raises(CheckpointError, match="was not written to its end"):
            again.load_checkpoint("memory://run/kept/step-0")
        again.save_checkpoint("memory://run/kept/step-0")
        system.pipe_file("/run/thesis/chapter.tex", b"years of work")
        with pytest.raises(CheckpointError, match="is no checkpoint, so it is not replaced"):
            again.save_checkpoint("memory://run/thesis")
        left = [path for path in os.listdir(tempfile.gettempdir()) if path.startswith("collie-checkpoint-")]
        return first.losses, second.losses, sorted(trainer.callbacks.callbacks[0].losses), names, left

    ((first, second, resumed, names, left),) = run_ranks(1, run)
    assert second == {1: first[1]} and resumed == [1, 2, 3]
    assert names == ["step-0"] and not left
