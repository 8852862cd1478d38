"""bitsandbytes' AdamW with states of 8 bits, through DeepSpeed."""

import pytest
import torch
from toy_training import make_config, make_model, rows

from collie.callbacks import Callback
from collie.controller.trainer import Trainer
from collie.testing import run_ranks

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, loss):
        self.seen.append(float(loss))


def train(make, stage=0, micro=10, **sizes):
    config = make_config(stage, micro=micro, train_epochs=4, **sizes)
    model, losses = make_model(config), Losses()
    optimizer = make(model.parameters())
    Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=[losses]).train()
    values = [value for state in optimizer.state.values() for value in state.values()]
    return losses.seen, {value.dtype for value in values if isinstance(value, torch.Tensor) and value.numel() > 1024}


def eight_bits(parameters):
    return bitsandbytes.optim.AdamW8bit(parameters, lr=1e-2, min_8bit_size=16)


@pytest.mark.parametrize(
    ("ranks", "sizes"),
    [(1, {}), (2, {"stage": 1, "micro": 5}), (2, {"stage": 3, "micro": 5}), (2, {"tp_size": 2})],
    ids=str,
)
def test_it_trains_as_adamw_does(ranks, sizes):
    """To the precision of 8 bits, with blocks of whole parameters, of flat shards and of parts."""
    [(expected, _)] = run_ranks(1, train, lambda p: torch.optim.AdamW(p, lr=1e-2))
    losses, kinds = run_ranks(ranks, lambda: train(eight_bits, **sizes))[0]
    assert losses == pytest.approx(expected, rel=2e-2)
    assert kinds == {torch.uint8}
