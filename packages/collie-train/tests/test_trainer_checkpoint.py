"""Checkpoints with training state: what follows a resume is what would have followed."""

import json

import pytest
import torch
from resuming import (
    Losses,
    NoisyRows,
    adafactor,
    adalomo,
    adamw,
    assert_goes_on_bitwise,
    blocks,
    interrupted,
    lomo,
    momentum,
    train,
)

from collie.testing import run_ranks


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


@pytest.mark.parametrize("optimizer", [adamw, momentum, adafactor, lomo, adalomo])
def test_one_process_goes_on_bitwise(tmp_path, optimizer):
    """Twenty steps and more after the checkpoint, with dropout, a warm-up and rows that are drawn as they are read."""

    def run():
        return interrupted(
            optimizer, tmp_path / "step-3", train_epochs=8, dropout=0.2, dataset=NoisyRows(), dataloader_num_workers=0
        )

    assert_goes_on_bitwise(run_ranks(1, run))


def test_data_workers_go_on_bitwise(tmp_path):
    def run():
        arguments = {"train_epochs": 2, "dataset": NoisyRows(), "dataloader_num_workers": 1}
        return interrupted(lomo, tmp_path / "step-3", **arguments)

    assert_goes_on_bitwise(run_ranks(1, run))


LAYOUTS = {
    "dp2": {"stage": 0, "micro": 2},
    "zero1": {"stage": 1, "micro": 2},
    "zero2": {"stage": 2, "micro": 2},
    "zero3": {"stage": 3, "micro": 2},
    "tp2": {"stage": 0, "micro": 4, "tp_size": 2},
    "tp2 zero3": {"stage": 3, "micro": 4, "tp_size": 2},
    "pp2 zero1": {"stage": 1, "micro": 2, "accumulate": 2, "pp_size": 2},
}


@pytest.mark.parametrize(
    ("optimizer", "dtype", "layouts"),
    [
        (adamw, torch.bfloat16, ["dp2", "zero1", "zero2"]),  # what DeepSpeed steps are its own float32 copies
        (adamw, torch.bfloat16, ["zero3"]),
        (adamw, torch.float32, ["tp2", "pp2 zero1"]),
        (momentum, torch.float32, ["tp2 zero3", "zero2"]),
        (lomo, torch.float32, ["dp2", "zero3", "tp2", "pp2 zero1"]),
        (adalomo, torch.bfloat16, ["dp2", "zero3", "tp2 zero3", "pp2 zero1"]),
    ],
)
def test_two_ranks_go_on_bitwise(tmp_path, optimizer, dtype, layouts):
    def run():
        return [
            interrupted(optimizer, tmp_path / layout, train_epochs=2, dropout=0.2, dtype=dtype, **LAYOUTS[layout])
            for layout in layouts
        ]

    for results in zip(*run_ranks(2, run), strict=True):
        assert_goes_on_bitwise(results)


DEEPSPEED = {
    "its own optimizer and schedule": {
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 0.01, "warmup_num_steps": 10}},
    },
    "gradients dealt in turn": {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
    "sub-groups": {"zero_optimization": {"stage": 3, "sub_group_size": 2000}},
    "optimizer on the host": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
}


@pytest.mark.parametrize("name", DEEPSPEED)
def test_what_ds_config_asks_for_goes_on_bitwise(tmp_path, name):
    ds_config = DEEPSPEED[name] | {"bf16": {"enabled": True}}
    optimizer = None if "optimizer" in ds_config else adamw

    def run():
        return interrupted(
            optimizer, tmp_path / "c", train_epochs=2, micro=2, dtype=torch.bfloat16, ds_config=ds_config
        )

    assert_goes_on_bitwise(run_ranks(2, run))


@pytest.mark.parametrize("stage", [0, 2])
def test_float16_goes_on_bitwise_with_its_loss_scale(tmp_path, stage):
    """DeepSpeed trains float16 on GPUs alone; told that this CPU is one that can, it does here, too."""
    ds_config = {
        "zero_optimization": {"stage": stage},
        "fp16": {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 2},
    }

    def run():
        from deepspeed.accelerator import get_accelerator

        kind = type(get_accelerator())
        kind.is_fp16_supported = lambda self: True
        kind.supported_dtypes = lambda self: [torch.float32, torch.float16]
        both = interrupted(adamw, tmp_path / "c", train_epochs=2, micro=2, dtype=torch.float16, ds_config=ds_config)
        scale = json.loads((tmp_path / "c/training/state.json").read_text())["scaler"]["cur_scale"]
        return both, scale

    both, scales = zip(*run_ranks(1, run), strict=True)
    assert_goes_on_bitwise(both)
    assert scales[0] > 2**8  # it has grown, so a scale that began anew would show


def test_states_in_blocks_go_on_in_their_layout_and_are_refused_in_others(tmp_path):
    def run():
        return interrupted(blocks, tmp_path / "c", train_epochs=2, **LAYOUTS["zero1"])

    def elsewhere():
        train(blocks, Losses(), resume=tmp_path / "c", train_epochs=2, micro=4)

    assert_goes_on_bitwise(run_ranks(2, run))
    error = run_ranks(1, elsewhere, return_exceptions=True)[0]
    assert "holds an optimizer's state in blocks that belong to its layout" in str(error.exception)


@pytest.mark.parametrize("optimizer", [adamw, lomo, adalomo])
def test_a_checkpoint_goes_on_in_other_layouts(tmp_path, optimizer):
    """Saved by one process and in each layout of two ranks; resumed in others, with the losses of one process."""
    onwards = {
        "zero1": ["tp2", "zero3"],
        "zero3": ["pp2 zero1"],
        "tp2": ["dp2", "pp2 zero1"],
        "pp2 zero1": ["zero3", "tp2 zero3"],
        "one": ["zero2", "tp2"],
    }

    def alone():
        return train(optimizer, Losses(3, tmp_path / "one"), train_epochs=2, micro=4)[0]

    def two():
        for layout in onwards:
            if layout != "one":
                train(optimizer, Losses(3, tmp_path / layout), train_epochs=2, **LAYOUTS[layout])
        return {
            (source, layout): train(optimizer, Losses(), resume=tmp_path / source, train_epochs=2, **LAYOUTS[layout])[0]
            for source, layouts in onwards.items()
            for layout in layouts
        }

    def back():
        return {
            source: train(optimizer, Losses(), resume=tmp_path / source, train_epochs=2, micro=4)[0]
            for source in onwards
        }

    expected = {step: loss for step, loss in run_ranks(1, alone)[0].items() if step > 3}
    for results in [*run_ranks(2, two, timeout=120), *run_ranks(1, back)]:
        for place, losses in results.items():
            assert losses == pytest.approx(expected, abs=1e-4), place
