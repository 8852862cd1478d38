"""Checkpoints of adapters: what is trained, without the model below it; resumed in its layout and in others."""

import pytest
import torch
from resuming import Losses, assert_goes_on_bitwise
from toy_training import make_config, rows, snapshot
from transformers import LlamaForCausalLM

from collie.controller.trainer import Trainer
from collie.interfaces import CheckpointError
from collie.models import CollieModelForCausalLM
from collie.testing import run_ranks, toy_llama_config

peft = pytest.importorskip("peft")
LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "lora_dropout": 0.2}


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


def adapted(callback, dtype=torch.float32, dropout=0.2, in_place=(), **layout):
    config = make_config(train_epochs=2, **layout)
    config.peft_config = peft.LoraConfig(**LORA | {"lora_dropout": dropout}, modules_to_save=list(in_place))
    model = CollieModelForCausalLM.from_config(config, dtype=dtype)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    return Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=callback)


def train(callback, resume=None, **arguments):
    trainer = adapted(callback, **arguments)
    trainer.train(resume=resume)
    return callback.losses, snapshot(trainer.model, trainer)


@pytest.mark.parametrize(
    "layout",
    [
        {"stage": 1, "micro": 2, "dtype": torch.bfloat16, "in_place": ["lm_head"]},
        {"stage": 3, "micro": 2},
        {"stage": 0, "micro": 4, "tp_size": 2},
        {"stage": 1, "micro": 2, "accumulate": 2, "pp_size": 2},
    ],
    ids=["zero1", "zero3", "tp2", "pp2"],
)
def test_an_adapter_goes_on_bitwise(tmp_path, layout):
    def run():
        return train(Losses(3, tmp_path / "c"), **layout), train(Losses(), resume=tmp_path / "c", **layout)

    assert_goes_on_bitwise(run_ranks(2, run))
    names = {file.name for file in (tmp_path / "c").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} < names and "model.safetensors" not in names


def test_an_adapter_goes_on_in_other_layouts(tmp_path):
    layouts = {
        "tp2": {"stage": 0, "micro": 4, "tp_size": 2},
        "pp2": {"stage": 1, "micro": 2, "accumulate": 2, "pp_size": 2},
        "zero3": {"stage": 3, "micro": 2},
    }

    def alone():
        return train(Losses(3, tmp_path / "one"), dropout=0.0, micro=4)[0]

    def two():
        train(Losses(3, tmp_path / "tp2"), dropout=0.0, **layouts["tp2"])
        found = [train(Losses(), resume=tmp_path / "one", dropout=0.0, **layout)[0] for layout in layouts.values()]
        return [*found, train(Losses(), resume=tmp_path / "tp2", dropout=0.0, **layouts["zero3"])[0]]

    def without():
        config = make_config(micro=4)
        model = CollieModelForCausalLM.from_config(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows())
        with pytest.raises(CheckpointError, match="with the adapter default, and this run has none"):
            trainer.load_checkpoint(tmp_path / "one")

    expected = {step: loss for step, loss in run_ranks(1, alone)[0].items() if step > 3}
    for losses in run_ranks(2, two)[0]:
        assert losses == pytest.approx(expected, abs=1e-4)
    run_ranks(1, without)


def test_an_adapter_of_peft_around_a_model_of_transformers(tmp_path):
    def make(callback):
        torch.manual_seed(3)
        config = make_config(stage=2, micro=2, train_epochs=2)
        model = LlamaForCausalLM(toy_llama_config())
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA, task_type="CAUSAL_LM"))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        return Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=callback)

    def run():
        first, second = Losses(1, tmp_path / "c"), Losses()
        make(first).train()
        make(second).train(resume=tmp_path / "c")
        return first.losses, second.losses

    for losses, resumed in run_ranks(2, run):
        assert resumed and resumed == {step: loss for step, loss in losses.items() if step > 1}
    assert (tmp_path / "c/adapter_model.safetensors").exists() and not (tmp_path / "c/model.safetensors").exists()
