"""Attention's kernels, torch's and stand-ins for the packages' own, against the plain one: numbers and gradients."""

import importlib.metadata
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from transformers import MistralConfig

from collie.config import CollieConfig
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.module import Mask, Packed, _backends, _kernels, attention, attention_backend
from collie.module._backends import BACKENDS
from collie.module._rehearsal import Rehearsal
from collie.testing import toy_config, toy_llama_config

CPU = torch.device("cpu")
S = 9


def rows(*lines):
    return torch.tensor([[int(c) for c in line] for line in lines])


def packed(keep):
    """Rows of 4, 1 and 4 tokens, and of 5 and 4."""
    return Mask.build(keep, S, 0, CPU, packed=Packed.build(torch.tensor([0, 4, 5, S, S + 5, 2 * S]), 2, S))


LEFT, RIGHT, BOTH, HOLE = "000111111", "111110000", "011110000", "110011011"
MASKS = {
    "causal": lambda: Mask.build(None, S, 0, CPU),
    "right": lambda: Mask.build(rows(RIGHT, "1" * S), S, 0, CPU),
    "left": lambda: Mask.build(rows(LEFT, RIGHT), S, 0, CPU),
    "left, and no token": lambda: Mask.build(rows(LEFT, "0" * S), S, 0, CPU),
    "both sides": lambda: Mask.build(rows(BOTH, LEFT), S, 0, CPU),
    "holes": lambda: Mask.build(rows(HOLE, LEFT), S, 0, CPU),
    "window": lambda: Mask.build(None, S, 0, CPU).within(3, S),
    "window, left": lambda: Mask.build(rows(LEFT, RIGHT), S, 0, CPU).within(3, S),
    "window, holes": lambda: Mask.build(rows(HOLE, LEFT), S, 0, CPU).within(3, S),
    "prefix": lambda: Mask.build(None, S, 0, CPU, prefix_B=torch.tensor([4, 0])),
    "prefix, left": lambda: Mask.build(rows(LEFT, RIGHT), S, 0, CPU, prefix_B=torch.tensor([5, 3])),
    "cached": lambda: Mask.build(None, 4, S - 4, CPU),
    "cached, left": lambda: Mask.build(rows(LEFT, "1" * S), 4, S - 4, CPU),
    "cached, window": lambda: Mask.build(None, 4, S - 4, CPU).within(3, S),
    "cached, forgotten": lambda: Mask.build(None, 4, 3 * S, CPU).within(3, S),
    "packed": lambda: packed(None),
    "packed, padding behind": lambda: packed(rows("1" * S, "110001111")),
    "packed, padding before and between": lambda: packed(rows("011100111", "110011111")),
    "packed, window": lambda: packed(None).within(3, S),
    "packed, window, padding before": lambda: packed(rows("0" + "1" * (S - 1), "1" * S)).within(3, S),
    "packed, window, holes": lambda: packed(rows("1" * S, "1" * 6 + "101")).within(2, S),
    "one": lambda: Mask.build(None, 1, S - 1, CPU),
    "one, left": lambda: Mask.build(rows(LEFT, "1" * S), 1, S - 1, CPU),
    "one, window": lambda: Mask.build(None, 1, S - 1, CPU).within(3, S),
}
FLASH = {"causal", "right", "left", "left, and no token", "both sides", "holes", "window", "window, left"}
FLASH |= {"packed", "packed, padding behind", "packed, padding before and between", "packed, window"}
FLASH |= {"packed, window, padding before"}
FLASH |= {"cached", "cached, window", "cached, forgotten", "one", "one, window"}  # without a dense mask


def result(kernel, mask, kv_heads=2):
    """Output where queries are tokens, and the gradients of its product with fixed numbers."""
    generator = torch.Generator().manual_seed(3)
    sizes = (4, mask.queries), (kv_heads, mask.keys), (kv_heads, mask.keys)
    q, k, v = (torch.randn(2, *size, 8, generator=generator).requires_grad_() for size in sizes)
    out = kernel(q, k, v, mask)
    assert out.shape == q.shape and out.isfinite().all()
    if mask.keep_BT is not None:
        out = out * mask.keep_BT[:, None, -mask.queries :, None]
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    return out, q.grad, k.grad, v.grad


def plain(q, k, v, mask):
    return attention(q, k, v, mask, use_flash=False)


@pytest.mark.parametrize("backend", ["flash", "math"])
@pytest.mark.parametrize("kind", MASKS)
def test_torch_on_a_cpu_equals_the_plain_one(kind, backend):
    with attention_backend(backend):
        ours = result(attention, MASKS[kind]())
    assert_close(ours, result(plain, MASKS[kind]()), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "left", "one"])
def test_a_kernel_without_groups_gets_them_repeated(kind):
    kernel = replace(next(b for b in BACKENDS if b.name == "math").run, groups=False)
    ours = result(lambda *args: kernel(*args, 0.0), MASKS[kind]())
    assert_close(ours, result(plain, MASKS[kind]()), atol=2e-6, rtol=1e-5)


# --- stand-ins for the packages: the same arguments and layouts, in plain torch --------------------------------------


def one_row(q_QNH, k_TKH, v_TKH, scale, causal, window):
    """What both packages document: query i is at key T - Q + i and sees `window` = (left, right) keys around it."""
    queries, keys, group = q_QNH.shape[0], k_TKH.shape[0], q_QNH.shape[1] // k_TKH.shape[1]
    left, right = (None if side is None or side < 0 else side for side in window)
    right = 0 if causal else right
    ahead_QT = torch.arange(keys) - (torch.arange(queries)[:, None] + keys - queries)
    hidden_QT = torch.zeros(queries, keys, dtype=torch.bool)
    if right is not None:
        hidden_QT |= ahead_QT > right
    if left is not None:
        hidden_QT |= ahead_QT < -left
    k_TNH, v_TNH = (x.repeat_interleave(group, 1) for x in (k_TKH, v_TKH))
    scores_NQT = torch.einsum("qnh,tnh->nqt", q_QNH, k_TNH) * (scale or q_QNH.shape[-1] ** -0.5)
    return torch.einsum("nqt,tnh->qnh", scores_NQT.masked_fill(hidden_QT, float("-inf")).softmax(-1), v_TNH)


def dense(q, k, v, softmax_scale, causal, window_size):
    assert q.dim() == k.dim() == v.dim() == 4 and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[2] % k.shape[2] == 0
    return torch.stack([one_row(*row, softmax_scale, causal, window_size) for row in zip(q, k, v, strict=True)])


def varlen(q, k, v, starts_q, starts_k, longest_q, longest_k, softmax_scale, causal, window_size):
    assert q.dim() == k.dim() == v.dim() == 3
    for starts, longest, x in ((starts_q, longest_q, q), (starts_k, longest_k, k)):
        assert starts.dtype == torch.int32 and starts.is_contiguous() and type(longest) is int
        assert starts[0] == 0 and starts[-1] == len(x) and longest == starts.diff().max() and starts.diff().min() > 0
    cut = [x.split(starts.diff().tolist()) for x, starts in ((q, starts_q), (k, starts_k), (v, starts_k))]
    return torch.cat([one_row(*row, softmax_scale, causal, window_size) for row in zip(*cut, strict=True)])


class FlashAttn2:
    """flash_attn 2.8."""

    @staticmethod
    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
        deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        assert dropout_p == 0.0
        return dense(q, k, v, softmax_scale, causal, window_size)

    @staticmethod
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        rows = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        assert dropout_p == 0.0
        return varlen(q, k, v, *rows, softmax_scale, causal, window_size)


class FlashAttn4:
    """flash_attn.cute of flash-attn-4 4.0.0b36; it returns the scores' logsumexp, too. (Left out: what follows.)"""

    @staticmethod
    def flash_attn_func(
        q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
        learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    ):  # fmt: skip
        return dense(q, k, v, softmax_scale, causal, window_size), None

    @staticmethod
    def flash_attn_varlen_func(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, min_seqlen_k=None,
        seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None, softmax_scale=None, causal=False,
        window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    ):  # fmt: skip
        rows = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        return varlen(q, k, v, *rows, softmax_scale, causal, window_size), None


@pytest.fixture(params=["flash_attn_2", "flash_attn_4"])
def stand_in(request, monkeypatch):
    """The name of a backend whose package is replaced, and which is made to run here, on any type of number."""
    package = {"flash_attn_2": FlashAttn2, "flash_attn_4": FlashAttn4}[request.param]
    monkeypatch.setattr(_kernels, "_find", lambda *which: package)
    here = {"devices": ("cpu",), "dtypes": None, "head_dims": range(1, 999)}
    table = tuple(replace(b, **here) if b.name == request.param else b for b in BACKENDS)
    monkeypatch.setattr(_backends, "BACKENDS", table)
    _backends._candidates.cache_clear()
    yield request.param
    _backends._candidates.cache_clear()


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("kind", MASKS)
def test_flash_attn_gets_the_arguments_it_documents(kind, kv_heads, stand_in):
    mask = MASKS[kind]()
    with attention_backend(stand_in):
        if kind not in FLASH:
            with pytest.raises(ConfigError, match="has no mask for"):
                result(attention, mask, kv_heads)
            return
        ours = result(attention, mask, kv_heads)
    assert "visible_B1QT" not in vars(mask)
    assert_close(ours, result(plain, MASKS[kind](), kv_heads), atol=2e-6, rtol=1e-5)


def test_dropout_and_determinism_reach_flash_attn_2(monkeypatch):
    seen = {}
    package = SimpleNamespace(flash_attn_func=lambda q, k, v, **options: seen.update(options) or q)
    monkeypatch.setattr(_kernels, "_find", lambda *which: package)
    q = torch.randn(1, 2, 3, 8)
    kernel = next(b for b in BACKENDS if b.name == "flash_attn_2").run
    assert torch.equal(kernel(q, q, q, Mask.build(None, 3, 0, CPU), 0.1), q)
    assert seen == {"causal": True, "deterministic": False, "dropout_p": 0.1}
    torch.use_deterministic_algorithms(True)
    try:
        kernel(q, q, q, Mask.build(None, 3, 0, CPU).within(2, 3), 0.0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == {"causal": True, "deterministic": True, "dropout_p": 0.0, "window_size": (1, 0)}


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_model_trains_by_flash_attn_without_a_dense_mask(family, stand_in, monkeypatch):
    """Left and right padding, groups and, in mistral, a window: loss and gradients are those of the plain formula."""
    config = toy_llama_config() if family == "llama" else toy_config(MistralConfig, sliding_window=3)
    ids = torch.arange(2 * S).view(2, S) + 3
    keep = rows(LEFT, RIGHT)
    labels = torch.where(keep.bool(), ids, -100)
    labels[0, 3] = -100  # the padding before it would have to predict it

    def gradients(use_flash):
        with torch.random.fork_rng():
            model = CollieModelForCausalLM.from_config(CollieConfig(model_config=config, use_flash=use_flash))
        loss = model(ids, keep, labels=labels).loss
        loss.backward()
        return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}

    expected = gradients(use_flash=False)
    monkeypatch.setattr(Mask, "visible_B1QT", property(lambda mask: pytest.fail("a dense mask was made")))
    with attention_backend(stand_in):
        assert_close(gradients(use_flash=True), expected, atol=1e-6, rtol=1e-4)
    torch.distributed.destroy_process_group()


# --- finding the packages -------------------------------------------------------------------------------------------


def find(distribution="flash-attn", module="flash_attn", versions=">=2.5", requirement="flash-attn>=2.5"):
    return _kernels._find.__wrapped__(distribution, module, versions, requirement)


def installed(monkeypatch, version):
    def answer(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", answer)


def test_a_package_is_found_by_its_distribution(monkeypatch):
    """flash-attn-4 alone makes `flash_attn` importable, too, as a namespace without functions."""
    module = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    installed(monkeypatch, None)
    assert find() == "flash-attn is not installed"
    installed(monkeypatch, "2.4.2")
    assert find() == "flash-attn 2.4.2 is installed, and flash-attn>=2.5 is needed"
    for version in ("2.5", "2.8.3.post1", "3.0.0b1"):
        installed(monkeypatch, version)
        assert find() is module


def test_a_package_that_fails_to_import_is_not_used_and_said_to_be_so(monkeypatch, caplog, tmp_path):
    (tmp_path / "flash_for_another_torch.py").write_text("raise OSError('undefined symbol: _ZN3c104cuda9SetDeviceEi')")
    monkeypatch.syspath_prepend(tmp_path)
    installed(monkeypatch, "2.8.3")
    reason = find(module="flash_for_another_torch")
    assert reason.startswith("flash-attn 2.8.3 cannot be imported (undefined symbol")
    assert "is installed, but cannot be imported and is not used: undefined symbol" in caplog.text


@pytest.mark.parametrize("version", ["4.0.0b35", "4.0.0b37", "4.0.0", "3.9"])
def test_another_flash_attn_4_than_the_tested_one_is_not_used_and_said_to_be_so(version, monkeypatch, caplog):
    """Its functions' arguments change from one pre-release to the next; the extra installs the one that was tested."""
    monkeypatch.setitem(sys.modules, "flash_attn.cute", SimpleNamespace())
    installed(monkeypatch, version)
    _kernels._find.cache_clear()
    kernel = next(b for b in BACKENDS if b.name == "flash_attn_4").run
    try:
        reasons = {kernel.absent() for _ in range(3)}
    finally:
        _kernels._find.cache_clear()
    [reason] = reasons
    assert reason.startswith(f"flash-attn-4 {version} is installed, and flash-attn-4==4.0.0b36 is needed")
    [said] = caplog.messages
    assert "it is not used. pip install 'collie-models[flash]'" in said


def test_the_extra_installs_the_version_that_is_used():
    wanted = next(b for b in BACKENDS if b.name == "flash_attn_4").run.versions
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    [required] = project["optional-dependencies"]["flash"]
    assert required.startswith(f"flash-attn-4{wanted};")


# --- a kernel that is compiled at its first call ---------------------------------------------------------------------


@pytest.fixture(params=["forward", "backward"])
def broken(request, monkeypatch):
    """flash-attn-4 on a machine where one of its passes cannot be compiled: how often it was tried."""
    calls = []

    class Passes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            calls.append(1)
            if request.param == "forward":
                raise RuntimeError("ptxas not found")
            return q * 1

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("ptxas not found")

    package = SimpleNamespace(flash_attn_func=lambda q, k, v, **options: (Passes.apply(q, k, v), None))
    monkeypatch.setattr(_kernels, "_find", lambda *which: package)
    here = {"devices": ("cpu",), "dtypes": None, "head_dims": range(1, 999), "rehearsal": Rehearsal("flash-attn-4")}
    table = tuple(replace(b, **here) if b.name == "flash_attn_4" else b for b in BACKENDS)
    monkeypatch.setattr(_backends, "BACKENDS", table)
    _backends._candidates.cache_clear()
    yield calls
    _backends._candidates.cache_clear()


def test_a_kernel_that_cannot_be_compiled_is_said_once_and_replaced_by_the_next(broken, caplog):
    for kind in ("causal", "window", "causal"):
        mask = MASKS[kind]()
        assert_close(result(attention, mask), result(plain, MASKS[kind]()), atol=2e-6, rtol=1e-5)
    assert len(broken) == 1  # and is not tried again
    assert caplog.messages == [
        "flash-attn-4 failed and is not used anymore in this process: RuntimeError: ptxas not found"
    ]
    with (
        attention_backend("flash_attn_4"),
        pytest.raises(ConfigError, match=r"it failed \(RuntimeError: ptxas not found"),
    ):
        result(attention, MASKS["causal"]())


def test_a_rehearsal_saves_nothing_for_the_layer_that_it_is_in():
    """A checkpointed layer is run again in the backward pass, without one, and must have saved as much as before."""
    rehearsal = Rehearsal("a kernel")

    def layer(x):
        assert rehearsal.passes("a", lambda x: x.exp() * x, (x,), grad=True)
        return x.exp()

    x = torch.ones(2, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert_close(x.grad, x.detach().exp())


def test_a_rehearsal_passes_once_for_each_kind_and_leaves_the_graph_alone():
    runs = []
    rehearsal = Rehearsal("a kernel")
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    for kind in ("a", "a", "b"):
        assert rehearsal.passes(kind, lambda x: runs.append(x.requires_grad) or x * x, (y,), grad=True)
    assert rehearsal.passes("c", lambda x: runs.append(x.requires_grad) or x * x, (y,), grad=False)
    assert runs == [True, True, False] and x.grad is None
    y.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_no_memory_is_no_reason_to_give_a_kernel_up():
    def full(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    rehearsal = Rehearsal("a kernel")
    with pytest.raises(torch.OutOfMemoryError):
        rehearsal.passes("a", full, (torch.ones(2),), grad=True)
    assert rehearsal.failure is None and rehearsal.passes("a", torch.sin, (torch.ones(2),), grad=True)
