"""The gradient's norm that a step reports, and the half precisions that ds_config asks for."""

import pytest
import torch
from toy_training import LR, make_config, make_model, rows, sgd, snapshot

from collie.controller.trainer import Trainer
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.optim import Lomo
from collie.testing import run_ranks


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


def reported(config, make=lambda model: sgd(model.parameters())):
    """The norm and the loss of each step of an epoch, and the weights after it."""
    model = make_model(config)
    trainer = Trainer(model, config, optimizer=make(model), train_dataset=rows())
    done = [trainer._update(micro_batches) for micro_batches in trainer.train_dataloader.iterate(0)]
    return [step.grad_norm for step in done], [step.loss_value for step in done], snapshot(model, trainer)


def bare(max_norm=0.0):
    """The same epoch in one process, by hand: norms before clipping, and the weights."""
    config = make_config(micro=4)
    model = make_model(config)
    trainer = Trainer(model, config, optimizer=sgd(model.parameters()), train_dataset=rows())
    optimizer, norms = torch.optim.SGD(model.parameters(), lr=0.05), []
    for (micro_batch,) in trainer.train_dataloader.iterate(0):
        model(**micro_batch.batch).loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm or 1e9).item())
        optimizer.step()
        optimizer.zero_grad()
    return norms, dict(model.named_parameters())


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize(
    ("ranks", "stage", "layout"),
    [
        (1, 0, {}),
        (2, 0, {"micro": 2}),
        (2, 1, {"micro": 2}),
        (2, 3, {"micro": 2}),
        (1, 0, {"micro": 2, "accumulate": 2}),
    ],
)
def test_the_norm_is_that_of_the_global_gradient(ranks, stage, layout, clip):
    """Before clipping, in each way in which DeepSpeed or the guard computes it; and clipping clips to it."""

    def run():
        config = make_config(**{"micro": 4, **layout})
        config.ds_config = {"zero_optimization": {"stage": stage}, "gradient_clipping": clip}
        return reported(config)

    expected, reference = run_ranks(1, bare, clip)[0]
    for norms, _, weights in run_ranks(ranks, run):
        assert norms == pytest.approx(expected, rel=1e-4)
        for name, weight in weights.items():
            if weight is not None:
                torch.testing.assert_close(weight, reference[name].detach(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("split", ["tp_size", "pp_size"])
def test_the_norm_counts_what_ranks_share_once(split):
    def run():
        config = make_config(micro=4 if split == "tp_size" else 2, accumulate=1 if split == "tp_size" else 2)
        setattr(config, split, 2)
        return reported(config)[0]

    expected, _ = run_ranks(1, bare)[0]
    for norms in run_ranks(2, run):
        assert norms == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("ranks", "stage", "layout"),
    [
        (1, 0, {"micro": 4}),
        (2, 0, {"micro": 2}),
        (2, 3, {"micro": 2}),
        (1, 0, {"micro": 2, "accumulate": 2}),
        (2, 0, {"micro": 4, "tp_size": 2}),
        (2, 0, {"micro": 2, "accumulate": 2, "pp_size": 2}),
    ],
)
def test_lomo_tells_the_norm_of_what_it_applied(ranks, stage, layout):
    """Without clipping, and so without a backward pass that only measures."""

    def run():
        return reported(make_config(stage, **layout), lambda model: Lomo(model, lr=LR))[0]

    expected, _ = run_ranks(1, bare)[0]
    for norms in run_ranks(ranks, run):
        assert norms == pytest.approx(expected, rel=1e-4)


def half(stage, name):
    """The losses and norms of an epoch with what ds_config makes of it."""
    config = make_config(micro=5)
    config.ds_config = {"zero_optimization": {"stage": stage}, name: {"enabled": True}}
    if name == "fp16":
        config.ds_config[name]["initial_scale_power"] = 8  # else the first updates look for the scale
    model = CollieModelForCausalLM.from_config(config)
    assert next(model.parameters()).dtype is {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    trainer = Trainer(model, config, optimizer=sgd(model.parameters()), train_dataset=rows())
    done = [trainer._update(micro_batches) for micro_batches in trainer.train_dataloader.iterate(0)]
    return [step.loss_value for step in done], [step.grad_norm for step in done]


def whole():
    norms, losses, _ = reported(make_config(micro=5))
    return losses, norms


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_from_ds_config(stage, name):
    """Losses and norms are those of float32 to its precision; DeepSpeed refuses float16 on a CPU, in a sentence."""

    def refused():
        with pytest.raises(ConfigError, match=r"fp16 is not supported on your device\. Change that value"):
            half(stage, name)

    if name == "fp16" and not torch.cuda.is_available():
        run_ranks(1, refused)
        return
    losses, norms = run_ranks(1, half, stage, name)[0]
    expected_losses, expected_norms = run_ranks(1, whole)[0]
    assert losses == pytest.approx(expected_losses, rel=0.03)
    assert norms == pytest.approx(expected_norms, rel=0.1)
