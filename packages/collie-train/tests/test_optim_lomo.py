"""LOMO is SGD: torch's weights in one process, over dp ranks and ZeRO-3, with one gradient alive at a time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from collie.config import CollieConfig
from collie.interfaces import ConfigError
from collie.optim.lomo import Lomo
from collie.parallel import full_parameters, materialise, setup_distribution
from collie.testing import run_ranks

STEPS = 3
LR = 0.05


class Net(nn.Module):
    """An embedding tied to the head, layers that may be recomputed in the backward pass, dropout, odd sizes."""

    def __init__(self, dropout=0.0, recompute=False):
        super().__init__()
        self.embed = nn.Embedding(11, 7)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Dropout(dropout)) for _ in range(3))
        self.head = nn.Linear(7, 11, bias=False)
        self.head.weight = self.embed.weight
        self.recompute = recompute

    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=False) if self.recompute else layer(hidden)
        return self.head(hidden)


def _reference(**arguments):
    torch.manual_seed(0)
    return Net(**arguments)


def _batches(micro_batches=1):
    """Rows of 4 global rows a step, 4 tokens each, with large losses so that gradients exceed norm 1."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(STEPS):
        ids = torch.randint(11, (4, 5), generator=generator)
        yield list(ids.chunk(micro_batches))


def _loss(model, ids):
    logits = model(ids[:, :-1]) * 4
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / 16


def _sgd(norm=None, value=None, decay=0.0):
    model = _reference()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=decay)
    norms = []
    for (ids,) in _batches():
        _loss(model, ids).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), norm or float("inf")).item())
        if value is not None:
            nn.utils.clip_grad_value_(model.parameters(), value)
        optimizer.step()
        optimizer.zero_grad()
    assert max(norms) > 1, "the test would not see a clip at norm 1"
    return {name: p.detach() for name, p in model.named_parameters()}, norms


def _spread(stage, **arguments):
    config = CollieConfig()
    config.ds_config = {"zero_optimization": {"stage": stage}}
    topology = setup_distribution(config)
    weights = dict(_reference().named_parameters())
    with torch.device("meta"):
        model = Net(**arguments)
    fill = lambda name, shape, a, b: weights[name].detach().flatten()[a:b]  # noqa: E731
    materialise(model, config, topology, torch.float32, fill)
    return model, topology


def _train_lomo(stage, accumulate=1, recompute=False, clip_norm=None, clip_value=None, decay=0.0):
    model, topology = _spread(stage, recompute=recompute)
    model.train()
    optimizer = Lomo(model, lr=LR, clip_grad_norm=clip_norm, clip_grad_value=clip_value, weight_decay=decay)
    norms = []
    for micro_batches in _batches(topology.dp_size * accumulate):
        mine = micro_batches[topology.dp_rank * accumulate : (topology.dp_rank + 1) * accumulate]
        if accumulate > 1:
            for ids in mine:
                optimizer.accumulate(_loss(model, ids) * topology.dp_size)
            norms.append(optimizer.apply_accumulated(LR))
            continue
        loss = _loss(model, mine[0]) * topology.dp_size
        if clip_norm is not None:
            norms.append(optimizer.grad_norm(loss))
            if optimizer.needs_second_forward:
                loss = _loss(model, mine[0]) * topology.dp_size
        optimizer.fused_backward(loss, LR)
        with torch.no_grad():
            model(mine[0])  # an evaluation between steps must see the new weights, and disturb nothing
    return dict(full_parameters(model, topology)), norms


LAYOUTS = pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (1, 3), (2, 3)])


@LAYOUTS
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_without_clipping_it_is_sgd(ranks, stage, accumulate, recompute):
    """Three steps end at torch.optim.SGD's weights to float32 rounding."""
    expected, _ = _sgd()
    ours, _ = run_ranks(ranks, _train_lomo, stage, accumulate, recompute)[0]
    for name, weight in expected.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=0)


@LAYOUTS
@pytest.mark.parametrize("accumulate", [1, 2])
def test_norm_clipping_equals_torchs(ranks, stage, accumulate):
    """The measured norms are those of the whole gradient, a tied weight counted once, and the clipped steps agree."""
    expected, expected_norms = _sgd(norm=0.5)
    for ours, norms in run_ranks(ranks, _train_lomo, stage, accumulate, False, 0.5):
        assert norms == pytest.approx(expected_norms, rel=1e-5)
        for name, weight in expected.items():
            if ours[name] is not None:
                torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=0)


@LAYOUTS
def test_value_clipping_and_weight_decay_equal_torchs(ranks, stage):
    """Values are clipped after the dp average, and decay is SGD's L2 term."""
    expected, _ = _sgd(value=0.02)
    ours, _ = run_ranks(ranks, _train_lomo, stage, 1, False, None, 0.02)[0]
    for name, weight in expected.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=0)
    decayed, _ = _sgd(decay=0.3)
    ours, _ = run_ranks(ranks, _train_lomo, stage, 1, False, None, None, 0.3)[0]
    for name, weight in decayed.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=0)


def test_at_most_one_gradient_is_alive():
    """The memory claim itself: whenever a gradient is applied, no parameter holds another one."""
    model = _reference()
    alive = []

    class Watched(Lomo):
        def update(self, shard, grad, lr, weight_decay):
            alive.append(sum(p.grad is not None for p in model.parameters()))
            super().update(shard, grad, lr, weight_decay)

    optimizer = Watched(model, lr=LR)
    optimizer.fused_backward(_loss(model, next(_batches())[0]), LR)
    assert alive == [0] * len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("recompute", [False, True])
def test_both_passes_see_the_same_dropout(recompute):
    """With clipping at norm n, the step's length is lr·n: only if the norm was that of the gradient applied."""
    model = _reference(dropout=0.5, recompute=recompute)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = Lomo(model, lr=1.0, clip_grad_norm=0.25)
    loss = _loss(model, next(_batches())[0])
    assert optimizer.grad_norm(loss) > 1
    optimizer.fused_backward(loss, 1.0)
    moved = torch.stack([(p - b).norm() for p, b in zip(model.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(0.25, rel=1e-4)


def test_what_it_refuses():
    model = _reference()
    with pytest.raises(ConfigError, match="clip_grad_norm=0"):
        Lomo(model, clip_grad_norm=0)
    with pytest.raises(ConfigError, match="lr=-1"):
        Lomo(model, lr=-1)
    with pytest.raises(ConfigError, match=r"loss_scale_args.*float16"):
        Lomo(model, loss_scale_args={"init_scale": 8})
    with pytest.raises(ConfigError, match=r"init_scale=0\.5"):
        Lomo(_reference().half(), loss_scale_args={"init_scale": 0.5})
    with pytest.raises(ConfigError, match=r"stochastic_rounding.*float32"):
        Lomo(model, stochastic_rounding=True)
    with pytest.raises(ConfigError, match="no parameter requires a gradient"):
        Lomo(_reference().requires_grad_(False))
    with pytest.raises(RuntimeError, match="fused_backward"):
        Lomo(model).step()
    with pytest.raises(RuntimeError, match="grad_norm"):
        Lomo(model, clip_grad_norm=1.0).fused_backward(_loss(model, next(_batches())[0]))


def test_a_backward_pass_that_is_not_its_own_keeps_gradients():
    """Hooks stay out of a plain loss.backward(); after close() even fused_backward moves nothing."""
    model = _reference()
    optimizer = Lomo(model, lr=LR)
    loss = _loss(model, next(_batches())[0])
    loss.backward(retain_graph=True)
    assert all(p.grad is not None for p in model.parameters())
    optimizer.close()
    before = model.embed.weight.detach().clone()
    optimizer.fused_backward(loss, LR)
    assert torch.equal(model.embed.weight, before)
