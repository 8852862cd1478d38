"""AdaLoRA resumed: importance, masks and schedule go on where they were, to the bit, under ZeRO 0 to 3."""

import math

import peft
import pytest
import torch
from toy_training import make_config, make_model, rows

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.interfaces import CheckpointError
from collie.testing import run_ranks

STEPS = 20  # of four epochs


class Notes(Callback):
    """Each step's loss and the adapter's values after it; saves after some steps; at one of them the loss is NaN."""

    def __init__(self, saves=None, folder=None):
        self.losses, self.values = {}, {}
        self._saves, self._folder = saves or (), folder

    def on_train_batch_end(self, trainer, loss):
        step = trainer.global_batch_idx
        self.losses[step] = loss.item()
        if step in self._saves:
            trainer.save_checkpoint(self._folder / str(step))

    def on_train_end(self, trainer):
        trainer.save_peft(str(self._folder))


def adalora(**changes):
    asked = {"init_r": 4, "target_r": 2, "tinit": 4, "tfinal": 4, "deltaT": 2, "total_step": STEPS}
    return peft.AdaLoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **(asked | changes))


def train(folder, saves=(), resume=None, stage=0, dp=1, dtype=torch.float32, asked=None, train_fn=None, **fields):
    """Twenty steps; the losses, and the adapter that is saved in the end."""
    folder.mkdir(exist_ok=True)
    config = make_config(
        stage=stage, micro=2 // dp, dp_size=dp, train_epochs=4, peft_config=asked or adalora(), **fields
    )
    if dtype is torch.bfloat16:
        config.ds_config = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}}
    model = make_model(config, dtype)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    notes = Notes(saves, folder)
    trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=notes, train_fn=train_fn)
    trainer.train(resume=resume)
    return notes.losses


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("dp", "stage", "dtype"),
    [
        (1, 0, torch.float32),
        (2, 1, torch.bfloat16),
        (2, 2, torch.float32),
        (2, 3, torch.float32),
        (2, 3, torch.bfloat16),
    ],
)
def test_it_goes_on_as_if_nothing_had_been(tmp_path, dp, stage, dtype):
    """From before the first allocation, between two of them, and from after the last."""
    saves = (0, 8, 17)
    alone, *rest = run_ranks(dp, lambda: train(tmp_path / "alone", saves, stage=stage, dp=dp, dtype=dtype))
    assert all(one == alone for one in rest) and len(alone) == STEPS
    kept = adapter(tmp_path / "alone")
    dropped = [name for name, value in kept.items() if "lora_E" in name and (value == 0).any()]
    assert dropped  # it was in fact allocated
    for step in saves:
        place, folder = tmp_path / "alone" / str(step), tmp_path / f"from-{step}"
        resumed, *_ = run_ranks(dp, lambda: train(folder, resume=place, stage=stage, dp=dp, dtype=dtype))  # noqa: B023
        assert resumed == {number: loss for number, loss in alone.items() if number > step}
        again = adapter(folder)
        assert all(torch.equal(again[name], value) for name, value in kept.items())


def test_it_goes_on_in_another_layout(tmp_path):
    """Saved by one process, resumed under ZeRO-3: as closely as sums round."""
    [alone] = run_ranks(1, lambda: train(tmp_path / "alone", (8,)))
    place = tmp_path / "alone" / "8"
    for resumed in run_ranks(2, lambda: train(tmp_path / "split", resume=place, stage=3, dp=2)):
        assert resumed == pytest.approx({number: loss for number, loss in alone.items() if number > 8}, abs=1e-4)


def test_a_checkpoint_of_lora_is_not_one_of_adalora(tmp_path):
    """Nor are its tensors found: the names of both are alike, their shapes and parts are not."""
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    run_ranks(1, lambda: train(tmp_path / "lora", (1,), asked=lora))
    [failed] = run_ranks(1, lambda: train(tmp_path / "x", resume=tmp_path / "lora" / "1"), return_exceptions=True)
    assert isinstance(failed.exception, CheckpointError)


def test_a_step_that_is_left_out_weighs_nothing(tmp_path):
    """on_nan="skip": the gradients of a step that was not applied are not in the next one's importance."""

    def run():
        def train_fn(trainer, batch, step):
            loss = trainer.model(**batch).loss
            return loss * math.nan if step == 6 else loss

        return train(tmp_path / "nan", train_fn=train_fn, on_nan="skip")

    [losses] = run_ranks(1, run)
    assert math.isnan(losses[6]) and all(math.isfinite(loss) for step, loss in losses.items() if step != 6)
    values = [value for name, value in adapter(tmp_path / "nan").items() if "lora_E" in name]
    assert any((value == 0).any() for value in values) and any((value != 0).any() for value in values)
