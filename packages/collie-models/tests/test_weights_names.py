"""Names and row orders of checkpoints: both ways, and slices of them."""

import pytest
import torch

from collie.models.llama import NAMES as LLAMA
from collie.models.moss_moon import NAMES as MOSS
from collie.models.weights import Names, Rename, inverse, pick


@pytest.mark.parametrize(
    ("names", "checkpoint", "ours"),
    [
        (LLAMA, "model.layers.11.self_attn.q_proj.weight", "layers.11.attention.q.weight"),
        (LLAMA, "model.layers.0.mlp.down_proj.bias", "layers.0.mlp.down.bias"),
        (LLAMA, "lm_head.weight", "head.weight"),
        (MOSS, "transformer.h.3.ln_1.bias", "layers.3.norm.bias"),
        (MOSS, "transformer.h.27.attn.qkv_proj.weight", "layers.27.attention.qkv.weight"),
        (MOSS, "lm_head.bias", "head.bias"),
    ],
)
def test_names_are_translated_both_ways(names, checkpoint, ours):
    assert names.to_ours(checkpoint) == ours
    assert names.to_checkpoint(ours)[0] == checkpoint


def test_names_that_only_look_alike_are_not_translated():
    assert LLAMA.to_ours("model.layers.x.self_attn.q_proj.weight") is None
    assert LLAMA.to_ours("model.layers.1.self_attn.q_proj.lora.weight") is None
    assert LLAMA.to_ours("prefix.model.norm.weight") is None
    with pytest.raises(KeyError, match=r"layers\.1\.gate"):
        LLAMA.to_checkpoint("layers.1.gate")


def test_buffers_of_checkpoints_are_known():
    assert MOSS.ignores("transformer.h.0.attn.causal_mask")
    assert LLAMA.ignores("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not LLAMA.ignores("model.layers.0.self_attn.q_proj.weight")


def test_dots_of_a_pattern_are_dots():
    assert Names(Rename("a.b", "c")).to_ours("axb") is None


def test_moss_blocks_become_all_q_all_k_all_v():
    """4 blocks of [q | v | k], two rows each: rows are numbered in the checkpoint's order."""
    _, entry = MOSS.to_checkpoint("layers.0.attention.qkv.weight")
    rows = entry.rows(None, 24)
    checkpoint = torch.tensor([f for block in range(4) for f in (100 + block, 300 + block, 200 + block) for _ in "ab"])
    ours = torch.cat([checkpoint[a:b] for a, b in rows])
    assert ours.tolist() == [n for kind in (100, 200, 300) for block in range(4) for n in [kind + block] * 2]
    assert torch.equal(torch.cat([ours[a:b] for a, b in inverse(rows)]), checkpoint)


def test_a_slice_of_our_rows_is_the_same_slice_of_the_whole():
    rows = MOSS.to_checkpoint("layers.0.attention.qkv.weight")[1].rows(None, 24)
    whole = torch.cat([torch.arange(24)[a:b] for a, b in rows])
    for start in range(24):
        for stop in range(start + 1, 25):
            picked = pick(rows, start, stop)
            assert torch.equal(torch.cat([torch.arange(24)[a:b] for a, b in picked]), whole[start:stop])


def test_ranges_that_touch_are_read_as_one():
    assert pick([(0, 4), (4, 8), (12, 16)], 2, 10) == [(2, 8), (12, 14)]
