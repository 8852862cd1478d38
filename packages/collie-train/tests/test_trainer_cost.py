"""The Trainer says once what its kind of step costs."""

import json
from pathlib import Path

import pytest
import torch
from toy_training import make_config, make_model, rows

from collie.controller.trainer import Trainer
from collie.optim import Lomo
from collie.testing import run_ranks


@pytest.mark.parametrize(
    ("ranks", "sizes", "clip", "expected"),
    [
        (1, {}, None, "Lomo: weights are 2 bytes a parameter; one parameter's gradient is alive at a time."),
        (1, {}, 1.0, "a second backward pass measures the norm (clip_grad_norm)."),
        (
            1,
            {"accumulate": 2},
            1.0,
            "until the last micro-batch (gradient_accumulation_steps), 2 bytes a parameter more.",
        ),
        (2, {"stage": 3}, 1.0, "2 bytes a parameter, divided by 2 ranks; one"),
        (2, {"stage": 3}, 1.0, "a second forward and backward pass measures the norm"),
        (1, {}, "sgd", "SGD: weights are 2 bytes a parameter; gradients and the optimizer's states are kept"),
    ],
)
def test_the_line_that_applies_is_in_the_events(ranks, sizes, clip, expected):
    def run():
        config = make_config(micro=2, **sizes)
        model = make_model(config, torch.bfloat16)
        made = torch.optim.SGD(model.parameters(), lr=0.1) if clip == "sgd" else Lomo(model, clip_grad_norm=clip)
        trainer = Trainer(model, config, optimizer=made, train_dataset=rows()[: 2 * ranks])
        trainer.train()
        trainer._recorder.events.close()
        return str(trainer.run_folder)

    folder = Path(run_ranks(ranks, run)[0])
    [file] = (folder / "events").glob("rank-00000*")
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert any(expected in event["message"] for event in events if event["kind"] == "log")
