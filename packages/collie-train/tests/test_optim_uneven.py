"""Parameters that the losses of some dp ranks do not depend on: no rank waits, and the step is one process's."""

import pytest
import torch
from torch import nn

from collie.config import CollieConfig
from collie.optim import AdaLomo, Lomo
from collie.parallel import full_parameters, materialise, setup_distribution
from collie.testing import run_ranks

LR, STEPS = 0.05, 2


class Branches(nn.Module):
    """Rows go through the branches that `use` names; `spare` is in none."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right, self.spare = (nn.Linear(5, 5) for _ in range(4))
        self.last = nn.Linear(5, 5)

    def forward(self, x, use):
        x = self.first(x)
        for name in use:
            x = x + getattr(self, name)(x)
        return self.last(x).square().sum()


def rows():
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))


def reference():
    torch.manual_seed(0)
    return Branches()


def trained(make, stage, uses, accumulate=1):
    """Each rank takes as many of the uses in turn."""
    config = CollieConfig()
    config.ds_config = {"zero_optimization": {"stage": stage}}
    topology = setup_distribution(config)
    weights = dict(reference().named_parameters())
    with torch.device("meta"):
        model = Branches()
    materialise(model, config, topology, torch.float32, lambda name, shape, a, b: weights[name].detach().flatten()[a:b])
    optimizer = make(model)
    each = len(uses) // topology.dp_size
    mine = list(zip(uses, rows(), strict=True))[topology.dp_rank * each : (topology.dp_rank + 1) * each]
    norms = []
    for _ in range(STEPS):
        losses = lambda: [model(x, use) * topology.dp_size for use, x in mine]  # noqa: E731
        if accumulate > 1:
            for loss in losses():
                optimizer.accumulate(loss)
            norms.append(optimizer.apply_accumulated())
            continue
        loss = sum(losses())
        if optimizer.needs_norm:
            norms.append(optimizer.grad_norm(loss))
        optimizer.fused_backward(loss)
    return dict(full_parameters(model, topology)), norms


MAKERS = {
    "lomo": lambda model: Lomo(model, lr=LR, weight_decay=0.1),
    "clipped": lambda model: Lomo(model, lr=LR, clip_grad_norm=1.0),
    "adalomo": lambda model: AdaLomo(model, lr=LR, weight_decay=0.1),
}


@pytest.mark.parametrize("make", list(MAKERS))
@pytest.mark.parametrize("uses", [(("left",), ("right",)), (("left", "right"), ())], ids=str)
def test_branches_of_one_rank_alone_train_as_in_one_process(make, uses):
    """And what no rank uses stays as it is, without decay."""
    [(expected, expected_norms)] = run_ranks(1, trained, MAKERS[make], 0, uses)
    for weights, norms in run_ranks(2, trained, MAKERS[make], 0, uses):
        assert norms == pytest.approx(expected_norms, rel=1e-5)
        for name, weight in expected.items():
            if weights[name] is not None:
                torch.testing.assert_close(weights[name], weight, atol=2e-6, rtol=1e-5)
    for name, before in reference().named_parameters():
        unused = name.startswith("spare")
        assert torch.equal(expected[name], before) == unused


def test_shards_of_which_some_ranks_have_no_gradient_are_refused_on_all():
    """DeepSpeed would wait for ranks that never come: those whose loss ignores what a branch returned."""

    def run():
        config = CollieConfig()
        config.ds_config = {"zero_optimization": {"stage": 3}}
        topology = setup_distribution(config)
        with torch.device("meta"):
            model = Branches()
        materialise(model, config, topology, torch.float32, lambda name, shape, a, b: torch.ones(b - a))
        optimizer = Lomo(model, lr=LR)
        x = model.first(rows()[0])
        ignored = model.left(x)
        loss = model.last(x if topology.dp_rank else x + ignored).sum()
        with pytest.raises(RuntimeError, match=r"do not depend on left\.weight \(2 parameters.*ZeRO stage below 3"):
            optimizer.fused_backward(loss)
        loss = model.last(x + ignored * (1 - topology.dp_rank)).sum()
        optimizer.fused_backward(loss)
        return dict(full_parameters(model, topology))["left.weight"]

    assert not torch.equal(run_ranks(2, run)[0], torch.ones(5, 5))


def test_kept_gradients_of_one_rank_alone_are_averaged_with_zeros():
    uses = (("left",), ("right",))
    [(expected, _)] = run_ranks(1, trained, MAKERS["lomo"], 0, uses)
    [(alone, _)] = run_ranks(1, trained, MAKERS["lomo"], 0, uses, 2)
    (weights, _), _ = run_ranks(2, trained, MAKERS["lomo"], 0, uses, 2)
    for name, weight in expected.items():
        torch.testing.assert_close(alone[name], weight, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(weights[name], weight, atol=2e-6, rtol=1e-5)
