"""Rotary embedding: what it must do to scores, what configs may say, and the caching of its tables."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from collie.interfaces import ConfigError
from collie.module import Rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_distance_alone(interleaved):
    """q at m and k at n score as q at m+5 and k at n+5, and lengths are kept."""
    q, k = torch.randn(2, 1, 3, 7, 16)
    rope = Rope(16, interleaved=interleaved)
    here, there = (rope.span(start, start + 7, q.device)(q, k) for start in (0, 5))
    assert_close(here[0] @ here[1].mT, there[0] @ there[1].mT, atol=1e-5, rtol=0)
    assert_close(here[0].norm(dim=-1), q.norm(dim=-1))
    assert not torch.allclose(here[0], there[0], atol=1e-2)


def test_pairs_that_turn_together():
    """Position 1 turns the pair of the highest frequency by one radian, and the second by 10000^(-2/4)."""
    x = torch.zeros(1, 1, 2, 4)
    x[..., 0] = 1.0
    slow = x.flip(-1).roll(-1, -1)  # ones in dimension 2
    for interleaved, pairs in ((False, (2, 3)), (True, (1, 3))):
        rotation = Rope(4, interleaved=interleaved).span(0, 2, x.device)
        turned = rotation(x, x)[0][0, 0, 1]
        assert_close(turned[[0, pairs[0]]], torch.tensor([math.cos(1.0), math.sin(1.0)]))
    turned = rotation(slow, slow)[0][0, 0, 1]  # interleaved: dimensions 2 and 3
    assert_close(turned[[2, 3]], torch.tensor([math.cos(0.01), math.sin(0.01)]))


def test_dimensions_beyond_the_rotated_ones_stay():
    q, k = torch.randn(2, 1, 2, 5, 16)
    turned, _ = Rope(4, interleaved=True).span(0, 5, q.device)(q, k)
    assert torch.equal(turned[..., 4:], q[..., 4:])
    assert not torch.allclose(turned[:, :, 1:, :4], q[:, :, 1:, :4])


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 2.5},
        {"rope_type": "dynamic", "factor": 2.0},
        LLAMA3,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
        {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.3},
        {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 0.4},
    ],
    ids=["default", "linear", "dynamic", "llama3", "yarn", "yarn betas", "yarn attention_factor", "yarn mscale"],
)
def test_frequencies_equal_those_of_transformers(scaling):
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters={"rope_theta": 5e5, **(scaling or {})})
    if scaling is None:
        config.rope_parameters["rope_type"] = "default"
    reference = LlamaRotaryEmbedding(config)
    rope = Rope.from_config(config, 16)
    assert_close(rope.frequencies, reference.inv_freq, rtol=1e-6, atol=0)
    positions = torch.tensor([[3, 0, 70, 500]])
    cos, sin = reference(torch.zeros(1), positions)
    turned = rope.at(positions)
    assert_close((turned.cos_B1SR[:, 0], turned.sin_B1SR[:, 0]), (cos, sin), atol=1e-5, rtol=0)


@pytest.mark.parametrize("given", [False, True])
def test_dynamic_scaling_follows_the_length_of_a_forward(given):
    """Beyond the original context as transformers has it, and back again for a shorter one."""
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=32,
        rope_parameters={"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0},
    )
    rope, device = Rope.from_config(config, 16), torch.device("cpu")
    for length in (32, 33, 90, 20):
        positions = torch.arange(length)[None]
        cos, _ = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
        ours = (rope.at(positions) if given else rope.span(0, length, device)).cos_B1SR[:, 0]
        assert_close(ours, cos, atol=1e-5, rtol=0)
        assert torch.allclose(ours, Rope(16).at(positions).cos_B1SR[:, 0], atol=1e-4) == (length <= 32)


@pytest.mark.parametrize(
    "config",
    [
        SimpleNamespace(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4.0}),
        SimpleNamespace(rope_theta=5e5, rope_scaling={"rope_type": "linear", "factor": 4.0}),
        SimpleNamespace(rope_parameters={"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}),
    ],
)
def test_both_spellings_of_a_config_are_read(config):
    expected = 1 / (5e5 ** (torch.arange(0, 8, 2) / 8)) / 4
    assert_close(Rope.from_config(config, 8).frequencies, expected)


def test_a_config_that_says_nothing_means_ten_thousand():
    assert_close(Rope.from_config(SimpleNamespace(rope_scaling=None), 4).frequencies, torch.tensor([1.0, 0.01]))


def test_unknown_or_incomplete_scaling_is_refused():
    with pytest.raises(
        ConfigError, match=r"'longrope' is not .*; supported are default, linear, dynamic, yarn, llama3"
    ):
        Rope(8, scaling={"rope_type": "longrope", "factor": 2.0})
    with pytest.raises(ConfigError, match=r"'dynamic' needs the number 'max_position_embeddings'"):
        Rope(8, scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(ConfigError, match=r"'linear' needs the number 'factor'"):
        Rope(8, scaling={"type": "linear"})
    with pytest.raises(ConfigError, match="gives it 5"):
        Rope(5)


def test_positions_one_by_one_equal_a_span():
    rope = Rope(8, scaling=LLAMA3)
    q, k = torch.randn(2, 2, 3, 6, 8)
    positions = torch.arange(100, 106).expand(2, 6)
    for a, b in zip(rope.at(positions)(q, k), rope.span(100, 106, q.device)(q, k), strict=True):
        assert torch.equal(a, b)


def test_a_table_is_made_once_and_grows_by_doubling():
    rope = Rope(8)
    first = rope.span(0, 10, torch.device("cpu")).cos_B1SR
    assert rope.span(3, 64, torch.device("cpu")).cos_B1SR.untyped_storage().data_ptr() == (
        first.untyped_storage().data_ptr()
    )
    grown = rope.span(0, 65, torch.device("cpu")).cos_B1SR
    assert grown.untyped_storage().nbytes() == 128 * 8 * 4
    assert copy.deepcopy(rope)._tables == {}


def test_a_table_made_while_generating_serves_training():
    rope = Rope(8)
    x = torch.randn(1, 1, 4, 8)
    with torch.inference_mode():
        rope.span(0, 4, x.device)
    x.requires_grad_()
    rope.span(0, 4, x.device)(x, x)[0].sum().backward()
    assert x.grad is not None
