"""Attention: both backends against the formula, what masks hide, and what they cost."""

import pytest
import torch
from torch.testing import assert_close

from collie.interfaces import ConfigError
from collie.module import Attention, Mask, Rope, attention

CPU = torch.device("cpu")
# 1 token, 0 padding: left, right, none
LEFT, RIGHT, FULL = [0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]


def qkv(batch=2, heads=4, kv_heads=2, queries=5, keys=5, dim=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    make = lambda n, s: torch.randn(batch, n, s, dim, generator=generator, dtype=dtype)  # noqa: E731
    return make(heads, queries), make(kv_heads, keys), make(kv_heads, keys)


def by_hand(q, k, v, row, past=0):
    """softmax(q·k/sqrt(H))·v, one query at a time, over the keys that the row of a padding mask and causality leave."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for head in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = [j for j in range(past + i + 1) if row[b][j] or j == past + i]
                scores = (k[b, head // group, seen] @ q[b, head, i]) / q.shape[-1] ** 0.5
                out[b, head, i] = scores.softmax(0) @ v[b, head // group, seen]
    return out


@pytest.mark.parametrize("use_flash", [False, True])
@pytest.mark.parametrize("rows", [[FULL, FULL], [RIGHT, FULL], [LEFT, FULL], [LEFT, RIGHT]])
def test_equals_the_formula_where_there_are_tokens(use_flash, rows):
    q, k, v = qkv()
    mask = Mask.build(torch.tensor(rows), 5, 0, CPU)
    ours = attention(q, k, v, mask, use_flash=use_flash)
    kept = torch.tensor(rows).bool()[:, None, :, None].expand_as(ours)
    assert_close(ours[kept], by_hand(q, k, v, rows)[kept], atol=1e-6, rtol=0)  # plain scores are float32
    assert ours.isfinite().all()


@pytest.mark.parametrize("use_flash", [False, True])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("rows", [[FULL, FULL], [LEFT, FULL], [RIGHT, FULL]])
def test_new_tokens_after_cached_ones(use_flash, queries, rows):
    q, k, v = qkv(queries=queries)
    rows = [row[: 5 - queries] + [1] * queries for row in rows]
    ours = attention(q, k, v, Mask.build(torch.tensor(rows), queries, 5 - queries, CPU), use_flash=use_flash)
    assert_close(ours, by_hand(q, k, v, rows, past=5 - queries), atol=1e-6, rtol=0)


@pytest.mark.parametrize("use_flash", [False, True])
def test_padding_alone_gives_numbers_and_gradients(use_flash):
    """A row that is all padding, and pad queries before the first token, must not divide zero by zero."""
    q, k, v = (x.requires_grad_() for x in qkv(dtype=torch.float32))
    rows = torch.tensor([[0, 0, 0, 0, 0], LEFT])
    attention(q, k, v, Mask.build(rows, 5, 0, CPU), use_flash=use_flash).square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def dense_was_made(mask):
    return "visible_B1QT" in vars(mask)


def test_what_a_kernel_must_know_of():
    """Right padding comes after all tokens: causality hides it. One query without padding sees everything."""
    needs = lambda rows, *sizes, **more: Mask.build(rows, *sizes, CPU, **more).needs  # noqa: E731
    for rows in (None, torch.tensor([FULL, FULL]), torch.tensor([RIGHT, FULL]), torch.tensor([[0] * 5, FULL])):
        assert needs(rows, 5, 0) == {"causal"}
    assert needs(None, 1, 4) == needs(torch.tensor([FULL]), 1, 4) == frozenset()
    assert needs(None, 2, 3) == {"causal", "offset"}
    assert needs(torch.tensor([LEFT, RIGHT]), 5, 0) == {"causal", "padding"}
    assert needs(torch.tensor([[1, 0, 0, 1, 1]]), 1, 4) == {"cached_padding"}
    assert needs(None, 5, 0, prefix_B=torch.tensor([3])) == {"causal", "prefix"}
    assert needs(None, 1, 4, prefix_B=torch.tensor([3])) == frozenset()


def test_padding_between_tokens_matters_to_a_window_only():
    """Without its padding a row's tokens are nearer to each other than they were."""
    for rows, gaps in ([LEFT, RIGHT], set()), ([[0, 1, 0, 1, 1], FULL], {"gaps"}):
        mask = Mask.build(torch.tensor(rows), 5, 0, CPU)
        assert mask.needs == {"causal", "padding"}
        assert mask.within(2, 5).needs == {"causal", "padding", "window"} | gaps


def test_rows_are_the_tokens_without_padding():
    rows = Mask.build(torch.tensor([LEFT, [0] * 5, RIGHT]), 5, 0, CPU).rows
    assert rows.index_U.tolist() == [2, 3, 4, 10, 11, 12]
    assert rows.cu_seqlens.tolist() == [0, 3, 6] and rows.cu_seqlens.dtype == torch.int32
    assert rows.longest == 3


@pytest.mark.parametrize("use_flash", [False, True])
@pytest.mark.parametrize("rows", [None, [FULL, FULL], [RIGHT, FULL]])
def test_no_dense_mask_where_causality_says_it(use_flash, rows):
    mask = Mask.build(None if rows is None else torch.tensor(rows), 5, 0, CPU)
    attention(*qkv(), mask, use_flash=use_flash)
    assert dense_was_made(mask) == (not use_flash)
    one = Mask.build(None, 1, 4, CPU)
    attention(*qkv(queries=1), one, use_flash=use_flash)
    assert not dense_was_made(one)


def test_a_bias_hides_what_is_not_visible_and_its_rows_are_aligned():
    mask = Mask.build(torch.tensor([LEFT, RIGHT]), 5, 0, CPU)
    bias = mask.bias(torch.bfloat16)
    assert bias.shape == (2, 1, 5, 5) and all(stride % 8 == 0 for stride in bias.stride()[:-1])
    assert torch.equal(bias == 0, mask.visible_B1QT) and torch.equal(bias == float("-inf"), ~mask.visible_B1QT)
    assert mask.bias(torch.bfloat16) is bias


def test_a_mask_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 5\), but 5 cached and 1 new tokens need \[batch, 6\]"):
        Mask.build(torch.ones(2, 5), 1, 5, CPU)


@pytest.mark.parametrize("use_flash", [False, True])
def test_dropout_keeps_the_mean(use_flash):
    """Dropped weights are made up for: the average over many draws is the undropped result."""
    torch.manual_seed(0)
    q, k, v = qkv(batch=1, heads=1, kv_heads=1, dtype=torch.float32)
    mask = Mask.build(None, 5, 0, CPU)
    many = [x.expand(20000, -1, -1, -1) for x in (q, k, v)]
    dropped = attention(*many, mask, dropout=0.25, use_flash=use_flash)
    assert dropped.std(0).max() > 0.1
    assert_close(dropped.mean(0, keepdim=True), attention(q, k, v, mask, use_flash=use_flash), atol=0.05, rtol=0)


def test_one_fused_projection_equals_three():
    torch.manual_seed(0)
    three = Attention(16, 4, 2, 8, index=0, bias=True)
    one = Attention(16, 4, 2, 8, index=0, bias=True, fused=True)
    for name in ("weight", "bias"):
        parts = [getattr(getattr(three, part), name) for part in "qkv"]
        getattr(one.qkv, name).data = torch.cat(parts)
    one.out.load_state_dict(three.out.state_dict())
    x, rope, mask = torch.randn(2, 5, 16), Rope(8).span(0, 5, CPU), Mask.build(None, 5, 0, CPU)
    assert_close(one(x, rope, mask), three(x, rope, mask), atol=1e-6, rtol=0)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="num_key_value_heads=3 does not divide num_attention_heads=4"):
        Attention(16, 4, 3, 8, index=0)


@pytest.mark.parametrize("use_flash", [False, True])
@pytest.mark.parametrize("rows", [[FULL, FULL], [LEFT, RIGHT]])
def test_a_window_counts_the_query_itself(use_flash, rows):
    q, k, v = qkv()
    mask = Mask.build(torch.tensor(rows), 5, 0, CPU).within(2, 5)
    ours = attention(q, k, v, mask, use_flash=use_flash)
    for i in range(2, 5):  # two keys, and where both are tokens no mask is needed to say so
        near = slice(i - 1, i + 1)
        row = next(b for b in (0, 1) if rows[b][i - 1] and rows[b][i])
        expected = by_hand(q[row : row + 1, :, near], k[row : row + 1, :, near], v[row : row + 1, :, near], [FULL])
        assert_close(ours[row, :, i], expected[0, :, 1], atol=1e-6, rtol=0)


def test_a_window_over_a_cache_that_forgot_what_is_out_of_reach():
    """The last keys alone, and no dense mask for one query that reaches all of them."""
    whole = Mask.build(torch.tensor([LEFT]), 2, 3, CPU)
    assert whole.within(3, 4).visible_B1QT[0, 0].tolist() == [[False, True, True, False], [False, True, True, True]]
    assert whole.within(3, 4) is whole.within(3, 4)
    one = Mask.build(None, 1, 9, CPU)
    assert one.within(4, 4).needs == frozenset()
    assert one.within(4, 10).needs == {"window"}
    assert one.within(4, 10).visible_B1QT.flatten().tolist() == [False] * 6 + [True] * 4
    assert one.within(10, 10) is one


def test_a_prefix_is_seen_by_all_and_padding_by_none():
    seen = Mask.build(torch.tensor([LEFT]), 5, 0, CPU, prefix_B=torch.tensor([4])).visible_B1QT[0, 0]
    assert seen[2].tolist() == [False, False, True, True, False]
    assert seen[4].tolist() == [False, False, True, True, True]


def test_norms_of_queries_and_keys_come_before_the_rotation():
    """Scaling q and k changes nothing where each head's are normed."""
    torch.manual_seed(0)
    block = Attention(16, 4, 2, 8, index=0, qk_norm_eps=0.0)
    torch.nn.init.normal_(block.q_norm.weight)
    x, rope, mask = torch.randn(2, 5, 16), Rope(8).span(0, 5, CPU), Mask.build(None, 5, 0, CPU)
    before = block(x, rope, mask)
    block.q.weight.data *= 3
    block.k.weight.data *= 0.5
    assert_close(block(x, rope, mask), before, atol=1e-5, rtol=0)
    block.q_norm.weight.data.neg_()
    assert not torch.allclose(block(x, rope, mask), before, atol=1e-3)
