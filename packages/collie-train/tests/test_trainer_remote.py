"""What a Trainer and its callbacks save and load by URL: models, adapters, and those of transformers."""

import fsspec
import peft
import pytest
import torch
from toy_training import make_config, make_model, rows, sgd, snapshot
from transformers import LlamaForCausalLM

from collie.adapters import load_peft, save_peft
from collie.callbacks import Callback, CheckpointCallback, LoadBestModelCallback
from collie.controller.trainer import Trainer
from collie.events import Checkpoint, EventReader, RunFolder
from collie.testing import run_ranks, toy_llama_config


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


class Tokens:
    """A tokenizer that has one file."""

    def save_pretrained(self, folder):
        (folder / "tokens.txt").write_text("a b c")


class Rising:
    """An evaluator whose score is better each time."""

    def __init__(self):
        self.score = 0.0

    def bind(self, context, model):
        pass

    def eval(self, dataloader=None):
        self.score += 1.0
        return {"score": self.score}


def files(url):
    system, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/") for path in system.find(root)} if system.exists(root) else set()


def test_models_and_what_callbacks_save():
    """On memory://, where nothing else sees it: saved with the tokenizer, told in the events, loaded, deleted."""

    def run():
        config = make_config(train_epochs=2, eval_per_n_epochs=1)
        model = make_model(config)
        callbacks = [
            CheckpointCallback("memory://run/kept", every_n_epochs=1, max=1),
            LoadBestModelCallback("memory://run/best", monitor="score", delete_after_train=False),
        ]
        trainer = Trainer(
            model, config, Tokens(), optimizer=sgd(model.parameters()), train_dataset=rows(), callbacks=callbacks,
            evaluators=Rising(),
        )  # fmt: skip
        trainer.train()
        trainer.save_model("memory://run/model")
        saved = snapshot(model, trainer)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        trainer.load_model("memory://run/model")
        trainer._recorder.events.close()
        return saved, snapshot(model, trainer), files("memory://run"), trainer.run_folder

    saved, loaded, found, folder = run_ranks(1, run)[0]
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    model = {"config.json", "model.safetensors", "tokens.txt"}
    assert found == {f"{place}/{name}" for place in ("model", "kept/epoch_2", "best/best") for name in model}
    records = EventReader(RunFolder(folder).event_files()[0]).read()
    told = [record.event for record in records if isinstance(record.event, Checkpoint)][-1]
    assert told.path == "memory://run/model" and told.bytes > 10_000


class SavedAdapter(Callback):
    """Keeps the adapter as it was after the first epoch."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer):
        trainer.save_peft(self.path)


def adapters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora" in name}


def test_adapters_on_two_ranks(tmp_path):
    """file://, ZeRO-3: what one rank uploads both get back, and plain PEFT reads it."""
    url = f"file://{tmp_path}/adapter"

    def run():
        config = make_config(stage=3, peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"]), dp_size=2, micro=2)
        model = make_model(config)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=SavedAdapter(url))
        trainer.train()
        trainer.load_peft(url)
        trainer.save_peft(f"{url}-again")

    run_ranks(2, run)
    wrapped = peft.PeftModel.from_pretrained(LlamaForCausalLM(toy_llama_config()), tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(LlamaForCausalLM(toy_llama_config()), tmp_path / "adapter-again")
    first, second = adapters(wrapped), adapters(again)
    assert any(value.any() for name, value in first.items() if "lora_B" in name)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_callbacks_save_the_adapter_that_a_model_has(tmp_path):
    """One in PEFT's wrapper, and one of ours that came by load_peft: neither is in the config."""

    def run():
        lora = peft.LoraConfig(r=2, target_modules=["q_proj"])
        config = make_config(train_epochs=2, eval_per_n_epochs=1, peft_config=lora)
        save_peft(make_model(config), tmp_path / "adapter")
        config = make_config(train_epochs=2, eval_per_n_epochs=1)
        ours = load_peft(make_model(config), config, tmp_path / "adapter", is_trainable=True)
        theirs = peft.get_peft_model(LlamaForCausalLM(toy_llama_config()), lora)
        for name, model in (("ours", ours), ("theirs", theirs)):
            callbacks = [
                CheckpointCallback(tmp_path / name, last=True),
                LoadBestModelCallback(tmp_path / name, monitor="score", delete_after_train=False),
            ]
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            trainer = Trainer(
                model, config, optimizer=optimizer, train_dataset=rows(), callbacks=callbacks, evaluators=Rising()
            )
            trainer.train()

    run_ranks(1, run)
    saved = {"adapter_config.json", "adapter_model.safetensors"}
    for name in ("ours", "theirs"):
        assert files(f"file://{tmp_path}/{name}") == {f"{place}/{file}" for place in ("last", "best") for file in saved}


def test_a_model_of_transformers_and_its_adapter():
    def run():
        plain = LlamaForCausalLM(toy_llama_config())
        config = make_config(train_epochs=1)
        trainer = Trainer(plain, config, Tokens(), optimizer=sgd(plain.parameters()), train_dataset=rows())
        trainer.save_model("memory://theirs/model")
        found = files("memory://theirs/model")
        wrapped = peft.get_peft_model(plain, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        trainer = Trainer(wrapped, config, optimizer=torch.optim.SGD(trained, lr=0.1), train_dataset=rows())
        trainer.save_peft("memory://theirs/adapter")
        before = adapters(wrapped)
        with torch.no_grad():
            for parameter in trained:
                parameter.zero_()
        trainer.load_peft("memory://theirs/adapter")
        return found, before, adapters(wrapped)

    found, before, after = run_ranks(1, run)[0]
    assert found == {"config.json", "generation_config.json", "model.safetensors", "tokens.txt"}
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
