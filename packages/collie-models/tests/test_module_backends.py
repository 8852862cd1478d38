"""The table of attention's kernels: which one does a call, and how a user sees and says it."""

import logging
from dataclasses import replace

import pytest
import torch

from collie.interfaces import ConfigError
from collie.module import Mask, _backends, attention, attention_backend
from collie.module._backends import BACKENDS, Call, candidates

CPU = torch.device("cpu")
TRAINING = Call("cuda", 9, torch.bfloat16, 128, dropout=False, grad=True, one_query=False, needs=frozenset({"causal"}))


def names(call, installed, forced=None):
    """The candidates where both flash-attn packages are installed, or neither is, whatever is installed here."""
    reason = None if installed else "it is not installed"
    table = [replace(b, absent=lambda: reason) if b.name.startswith("flash_attn") else b for b in BACKENDS]
    return " ".join(backend.name for backend in candidates(call, table, forced))


def needs(*kinds):
    return {"needs": frozenset({"causal", *kinds})}


@pytest.mark.parametrize(
    ("special", "with_packages", "without"),
    [
        ({}, "flash_attn_4 cudnn flash_attn_2 flash efficient math", "cudnn flash efficient math"),
        ({"grad": False}, "flash_attn_4 flash_attn_2 flash efficient math", "flash efficient math"),
        ({"grad": False, "one_query": True}, "flash_attn_2 flash efficient math", "flash efficient math"),
        ({"dropout": True}, "flash_attn_2 flash efficient math", "flash efficient math"),
        (needs("window"), "flash_attn_4 flash_attn_2 efficient math", "efficient math"),
        (needs("padding"), "flash_attn_4 flash_attn_2 efficient math", "efficient math"),
        (needs("padding", "window"), "flash_attn_4 flash_attn_2 efficient math", "efficient math"),
        (needs("offset"), "flash_attn_4 flash_attn_2 efficient math", "efficient math"),
        (needs("padding", "window", "gaps"), "efficient math", "efficient math"),
        (needs("cached_padding", "offset"), "efficient math", "efficient math"),
        (needs("prefix"), "efficient math", "efficient math"),
        ({"dtype": torch.float32}, "efficient math", "efficient math"),
        ({"dtype": torch.float64}, "math", "math"),
        ({"head_dim": 192}, "flash_attn_2 flash efficient math", "flash efficient math"),
        ({"head_dim": 256}, "flash_attn_2 flash efficient math", "flash efficient math"),
        ({"head_dim": 36}, "flash_attn_2 flash efficient math", "flash efficient math"),
        ({"head_dim": 512}, "efficient math", "efficient math"),
        ({"major": 8}, "cudnn flash_attn_2 flash efficient math", "cudnn flash efficient math"),
        ({"major": 10}, "cudnn flash_attn_2 flash efficient math", "cudnn flash efficient math"),
        ({"major": 7}, "efficient math", "efficient math"),
        ({"device": "cpu", "major": 0}, "flash math", "flash math"),
        ({"device": "cpu", "major": 0} | needs("prefix"), "flash math", "flash math"),
        ({"device": "cpu", "major": 0, "dropout": True}, "math", "math"),
        ({"device": "mps", "major": 0}, "math", "math"),
    ],
)
def test_the_fastest_that_can_do_a_call_comes_first(special, with_packages, without):
    call = replace(TRAINING, **special)
    assert names(call, installed=True) == with_packages
    assert names(call, installed=False) == without


def test_a_forced_backend_is_taken_for_what_it_can_do_and_not_only_for_what_it_is_good_at():
    generating = replace(TRAINING, grad=False, one_query=True, needs=frozenset())
    assert names(generating, True, "cudnn") == "cudnn"
    assert names(generating, True, "flash_attn_4") == "flash_attn_4"
    assert names(replace(TRAINING, device="cpu"), True, "flash") == "flash"


@pytest.mark.parametrize(
    ("name", "special", "reason"),
    [
        ("flash_attn_4", {"device": "cpu"}, "it does not run on cpu"),
        ("flash_attn_4", {"major": 8}, r"it does not run on GPUs of compute capability 8\.x"),
        ("flash_attn_4", {"dropout": True}, "it has no dropout"),
        ("flash_attn_4", {}, "it is not installed"),
        ("flash", {"dtype": torch.float32}, "it does not take torch.float32"),
        ("flash", {"device": "cpu", "dropout": True}, "it has no dropout"),
        ("cudnn", {"head_dim": 256}, "it does not take heads of 256 dimensions"),
        ("cudnn", needs("window", "offset"), "it has no mask for offset, window"),
    ],
)
def test_a_forced_backend_that_cannot_do_a_call_is_refused(name, special, reason):
    with pytest.raises(ConfigError, match=rf"attention_backend\('{name}'\) cannot do this call: {reason}"):
        names(replace(TRAINING, **special), False, name)


def test_no_other_name_is_taken():
    with (
        pytest.raises(ConfigError, match=r"no attention backend 'flsh'.*Did you mean 'flash'"),
        attention_backend("flsh"),
    ):
        pass


def test_the_innermost_name_holds_and_only_inside():
    q = torch.randn(1, 2, 3, 8)
    mask = Mask.build(None, 3, 0, CPU)
    with attention_backend("cudnn"):
        with attention_backend("math"):
            attention(q, q, q, mask)
        with pytest.raises(ConfigError, match="does not run on cpu"):
            attention(q, q, q, mask)
        attention(q, q, q, mask, use_flash=False)
    attention(q, q, q, mask)


def test_the_choice_is_logged_once_for_each_kind_of_call(caplog):
    _backends._say.cache_clear()
    caplog.set_level(logging.DEBUG, "collie.module")
    q = torch.randn(1, 2, 3, 8)
    for mask in (
        Mask.build(None, 3, 0, CPU),
        Mask.build(None, 3, 0, CPU),
        Mask.build(torch.tensor([[0, 1, 1]]), 3, 0, CPU),
    ):
        attention(q, q, q, mask)
    assert caplog.messages == [
        "attention on cpu by flash: float32, head dim 8, causal",
        "attention on cpu by flash: float32, head dim 8, causal, padding",
    ]
