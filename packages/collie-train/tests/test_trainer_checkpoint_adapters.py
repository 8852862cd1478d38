"""Trainings of an adapter: recomputed under ZeRO-3, and resumed in the same layout and in others."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import LlamaForCausalLM

from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.trainer import Trainer
from collie.models import CollieModelForCausalLM
from collie.parallel import setup_distribution
from collie.testing import run_ranks, toy_llama_config

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
SAVED_AFTER = 1  # index of the step


class Losses(Callback):
    """Keeps each step's loss; saves a checkpoint after one of them where it is given a folder."""

    def __init__(self, folder=None):
        self.seen = []
        self._folder = folder

    def on_train_batch_end(self, trainer, loss):
        self.seen.append(loss.item())
        if self._folder is not None and trainer.global_batch_idx == SAVED_AFTER:
            trainer.save_checkpoint(self._folder)


def rows():
    numbers = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 90, (8,), generator=numbers).tolist() for _ in range(8)]
    return [{"input_ids": row, "labels": row} for row in ids]


def train(*, folder=None, resume=None, zero=0, micro=2, theirs=False, peft=None, **sizes):
    """Train two epochs of two steps of four rows, layers recomputed; return the losses."""
    config = CollieConfig(model_config=toy_llama_config(num_hidden_layers=2), checkpointing=True, **sizes)
    config.train_epochs, config.train_micro_batch_size = 2, micro
    config.gradient_accumulation_steps = 4 // (micro * max(1, config.dp_size))
    config.ds_config = {"zero_optimization": {"stage": zero}}
    setup_distribution(config)
    if theirs:
        torch.manual_seed(0)
        model = get_peft_model(LlamaForCausalLM(config.model_config), LoraConfig(**LORA))
    else:
        config.peft_config = peft or LoraConfig(**LORA)
        model = CollieModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = Losses(folder)
    Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=losses).train(resume=resume)
    return losses.seen


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """The losses of one process, and the folder of a checkpoint of its second step."""
    folder = tmp_path_factory.mktemp("adapter") / "c"
    [losses] = run_ranks(1, lambda: train(folder=folder))
    return losses, folder


@pytest.mark.parametrize("theirs", [False, True])
def test_frozen_slices_are_recomputed(theirs):
    """Under ZeRO-3 an adapter's gradients are those of data parallelism, first layer included."""
    (plain, _), (split, _) = (run_ranks(2, lambda z=z: train(zero=z, dp_size=2, theirs=theirs)) for z in (0, 3))
    assert len(set(plain)) == len(plain)
    assert split == pytest.approx(plain, abs=1e-5)


def test_a_checkpoint_holds_the_adapter_and_not_the_weights(ready):
    """By PEFT's names, with the optimizer's states under the same."""
    _, folder = ready
    assert not list(folder.glob("*.safetensors"))
    with safe_open(folder / "training" / "adapter.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight" in names
    with safe_open(folder / "training" / "optimizer.safetensors", framework="pt") as file:
        assert {name.partition("/")[2] for name in file.keys() if name.startswith("exp_avg/")} == names  # noqa: SIM118


@pytest.mark.parametrize(
    ("ranks", "sizes"), [(1, {}), (2, {"tp_size": 2}), (2, {"pp_size": 2}), (2, {"dp_size": 2, "zero": 3})]
)
def test_it_goes_on_in_every_layout(ready, ranks, sizes):
    """In the same one to the bit, in others as closely as sums round."""
    losses, folder = ready
    rest = losses[SAVED_AFTER + 1 :]
    for resumed in run_ranks(ranks, lambda: train(resume=folder, **sizes)):
        assert resumed == (rest if ranks == 1 else pytest.approx(rest, abs=1e-5))
