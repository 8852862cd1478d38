"""Checkpoints with training state: what follows a resume is what would have followed."""

import pytest
import torch
from resuming import adamw, interrupted, lomo, momentum

from collie.testing import run_ranks


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


def same(results, save_after):
    for (alone, weights), (resumed, resumed_weights) in results:
        assert min(resumed) == save_after + 1
        assert resumed == {step: loss for step, loss in alone.items() if step > save_after}
        assert weights.keys() == resumed_weights.keys()
        for name, tensor in weights.items():
            assert tensor is None or torch.equal(tensor, resumed_weights[name]), name


@pytest.mark.parametrize("optimizer", [adamw, momentum, lomo])
def test_one_process_goes_on_bitwise(tmp_path, optimizer):
    def run():
        return interrupted(optimizer, tmp_path / "step-3", train_epochs=3, dropout=0.2)

    same(run_ranks(1, run), 3)
