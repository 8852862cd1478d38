"""From `meta` to shards and back: values, ties, padding, and what a rank asks its checkpoint for."""

import pytest
import torch
from torch import nn

from collie.config import CollieConfig
from collie.parallel import full_parameters, is_partitioned, materialise, refill, setup_distribution
from collie.testing import run_ranks

pytest.importorskip("deepspeed")
DTYPE = torch.float32


class Net(nn.Module):
    """An embedding, a layer of odd size, and a head that shares the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.layer = nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.layer(self.embed(ids))))


def reference():
    torch.manual_seed(3)
    return Net()


class FromReference:
    """A fill that remembers how many elements it was asked for."""

    def __init__(self, scale=1.0):
        self.weights = {n: p.detach() * scale for n, p in reference().named_parameters()}
        self.asked = {}

    def __call__(self, name, shape, start, stop):
        assert shape == self.weights[name].shape
        self.asked[name] = self.asked.get(name, 0) + stop - start
        return self.weights[name].flatten()[start:stop]


def _build(stage, fill):
    config = CollieConfig()
    config.ds_config = {"zero_optimization": {"stage": stage}}
    topology = setup_distribution(config)
    with torch.device("meta"):
        model = Net()
    materialise(model, config, topology, DTYPE, fill)
    return model, topology


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (1, 3), (2, 3), (3, 3)])
def test_materialised_model_equals_its_source(ranks, stage):
    """Forward pass and gathered weights are the source's, bit for bit, also where 7·5 does not divide."""
    ids = torch.arange(7).view(1, 7)
    expected = reference()(ids)

    def run():
        model, topology = _build(stage, FromReference())
        output = model(ids)
        whole = dict(full_parameters(model, topology))
        return output.detach(), whole, model.head.weight is model.embed.weight, is_partitioned(model.layer.weight)

    for rank, (output, whole, tied, partitioned) in enumerate(run_ranks(ranks, run)):
        assert torch.equal(output, expected)
        assert tied and partitioned == (stage == 3)
        assert list(whole) == ["embed.weight", "layer.weight", "layer.bias"]
        for name, parameter in reference().named_parameters():
            if rank == 0:
                assert torch.equal(whole[name], parameter)
            else:
                assert whole[name] is None


def test_a_rank_asks_for_its_slice_only():
    """Under ZeRO-3 the slices of 3 ranks make each tensor exactly once; the tied weight is asked for once."""

    def run():
        fill = FromReference()
        _build(3, fill)
        return fill.asked

    asked = run_ranks(3, run)
    assert [a.get("embed.weight") for a in asked] == [12, 12, 11]
    assert [a.get("layer.weight") for a in asked] == [9, 9, 7]
    assert [a.get("layer.bias") for a in asked] == [2, 2, 1]


@pytest.mark.parametrize("stage", [0, 3])
def test_refill_replaces_values_between_forward_passes(stage):
    """Small parameters stay gathered under ZeRO-3; a refill must reach those copies, too."""
    ids = torch.arange(7).view(1, 7)

    def run():
        model, topology = _build(stage, FromReference())
        model(ids)
        refill(model, topology, FromReference(scale=2.0))
        return model(ids).detach()

    doubled = reference()
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2.0)
    for output in run_ranks(2, run):
        assert torch.equal(output, doubled(ids))
