"""bfloat16 weights: small steps are lost by rounding to the nearest, and kept on average by rounding by chance."""

import pytest
import torch
from torch import nn

from collie.config import CollieConfig
from collie.optim import AdaLomo, Lomo
from collie.optim._rounding import round_stochastically
from collie.parallel import full_parameters, materialise, setup_distribution
from collie.testing import run_ranks

HALF_SPACING = 2.0**-8  # of bfloat16 numbers above 1, rounding to the nearest
STEPS = 64


class Ones(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 65, dtype=torch.bfloat16))
        self.bias = nn.Parameter(torch.ones(67, dtype=torch.bfloat16))

    def forward(self):
        return self.weight.sum() + self.bias.sum()  # every gradient is 1


def moved(make):
    model = Ones()
    optimizer = make(model)
    for _ in range(STEPS):
        optimizer.fused_backward(model())
    return 1 - model.weight.float().mean().item()


@pytest.mark.parametrize(
    "make",
    [
        lambda model, **how: Lomo(model, lr=HALF_SPACING / 16, **how),
        lambda model, **how: AdaLomo(model, lr=HALF_SPACING / 16, **how),
    ],
)
def test_small_steps_are_lost_without_it_and_kept_on_average_with_it(make):
    """64 steps of a sixteenth of half a spacing; AdaLomo's are as long, since weights and updates have RMS 1."""
    assert moved(lambda model: make(model)) == 0.0
    kept = moved(lambda model: make(model, stochastic_rounding=True))
    assert kept == pytest.approx(STEPS * HALF_SPACING / 16, rel=0.1)


def test_values_go_to_a_neighbour_with_the_chance_of_their_place_between_the_two():
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([-1.0, -1.0 - 2**-7], dtype=torch.bfloat16)
    rounded = round_stochastically(torch.full((40000,), -1.0 - 2**-7 * 0.25), generator)
    assert set(rounded.tolist()) == {low.item(), high.item()}
    assert (rounded == high).float().mean().item() == pytest.approx(0.25, abs=0.01)
    special = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, 1.5])
    assert torch.equal(
        round_stochastically(special.clone(), generator).float().nan_to_num(7.0), special.nan_to_num(7.0)
    )


@pytest.mark.parametrize("stage", [0, 3])
def test_copies_draw_alike_and_slices_apart(stage):
    """Replicas stay equal bit for bit, without touching torch's own generator; slices of ones are rounded otherwise."""

    def run():
        config = CollieConfig()
        config.ds_config = {"zero_optimization": {"stage": stage}}
        topology = setup_distribution(config)
        with torch.device("meta"):
            model = Ones()
        materialise(model, config, topology, torch.bfloat16, lambda name, shape, a, b: torch.ones(b - a))
        optimizer = Lomo(model, lr=HALF_SPACING / 2, stochastic_rounding=True)
        before = torch.get_rng_state()
        for _ in range(3):
            optimizer.fused_backward(model())
        assert torch.equal(before, torch.get_rng_state())
        mine = model.weight.detach().clone() if stage == 0 else None
        return mine, dict(full_parameters(model, topology))["weight"]

    (first, whole), (second, _) = run_ranks(2, run)
    assert set(whole.float().unique().tolist()) >= {1.0, 1.0 - HALF_SPACING}
    if stage == 0:
        assert torch.equal(first, second)
    else:
        assert not torch.equal(*whole.flatten().chunk(2))
