"""The loss, and the head that computes it without all logits: values and gradients against plain torch."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from collie.module import GPTLMLoss, LMHead, RMSNorm, _head, count_targets

B, S, E, V = 3, 7, 16, 37


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 4 rows, so that a batch takes several and the last is not full."""
    monkeypatch.setattr(_head, "_CHUNK_ROWS", 4)
    monkeypatch.setattr(_head, "_CHUNK_ELEMENTS", 1)


def sample(bias, dtype=torch.float32):
    torch.manual_seed(1)
    head = LMHead(E, V, bias=bias, dtype=dtype)
    hidden = torch.randn(B, S, E, dtype=dtype, requires_grad=True)
    labels = torch.randint(V, (B, S))
    labels[0, :3] = labels[1, 5:] = -100
    return head, hidden, labels


def plain_sum(head, hidden, labels):
    logits = F.linear(hidden, head.weight, head.bias)[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def test_loss_is_the_mean_over_shifted_targets():
    head, hidden, labels = sample(bias=False)
    logits = head(hidden)
    log_p = logits.log_softmax(-1)
    each = [-log_p[b, t, labels[b, t + 1]] for b in range(B) for t in range(S - 1) if labels[b, t + 1] != -100]
    assert_close(GPTLMLoss(-100)(logits, labels), torch.stack(each).mean())
    total, count = GPTLMLoss().sum(logits, labels)
    assert_close(total, torch.stack(each).sum())
    assert count == len(each) == count_targets(labels)


def test_another_ignore_index_and_no_target_at_all():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    labels = torch.tensor([[4, 0, 2]])
    assert_close(GPTLMLoss(0)(logits, labels), F.cross_entropy(logits[:, 1], labels[:, 2]))
    nothing = GPTLMLoss(-100)(logits, torch.full((1, 3), -100))
    nothing.backward()
    assert nothing == 0 and logits.grad.eq(0).all()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_loss_equals_the_plain_one(bias):
    head, hidden, labels = sample(bias)
    leaves = [hidden, *head.parameters()]
    expected = plain_sum(head, hidden, labels)
    expected_grads = torch.autograd.grad(expected / 5, leaves)
    ours = head(hidden, labels)
    assert_close(ours, expected, atol=1e-5, rtol=1e-6)
    for grad, reference in zip(torch.autograd.grad(ours / 5, leaves), expected_grads, strict=True):
        assert_close(grad, reference, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_as_good_as_the_plain_ones(dtype):
    """Against float64, chunked sums lose no more than one rounding to the parameters' dtype."""
    head, hidden, labels = sample(True, dtype)
    wide = LMHead(E, V, dtype=torch.float64)
    wide.load_state_dict(head.state_dict())
    wide_hidden = hidden.detach().double().requires_grad_()
    exact = torch.autograd.grad(plain_sum(wide, wide_hidden, labels), [wide_hidden, *wide.parameters()])
    ours = torch.autograd.grad(head(hidden, labels), [hidden, *head.parameters()])
    for grad, reference in zip(ours, exact, strict=True):
        assert grad.dtype is dtype
        assert_close(grad.double(), reference, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps)


@pytest.mark.usefixtures("small_chunks")
def test_two_backward_passes_over_one_graph_give_equal_gradients():
    head, hidden, labels = sample(bias=True)
    loss = head(hidden, labels)
    first = torch.autograd.grad(loss, [hidden, *head.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [hidden, *head.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_only_where_they_are_wanted():
    head, hidden, labels = sample(bias=True)
    head.requires_grad_(False)
    head(hidden, labels).backward()
    assert hidden.grad is not None and head.weight.grad is None and head.bias.grad is None
    with torch.no_grad():
        assert not head(hidden, labels).requires_grad


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("grad", [False, True])
def test_logits_of_the_whole_batch_are_never_held(grad, monkeypatch):
    head, hidden, labels = sample(bias=False)
    rows = []
    linear = F.linear
    monkeypatch.setattr(_head.F, "linear", lambda x, *rest: rows.append(x.shape[0]) or linear(x, *rest))
    with torch.set_grad_enabled(grad):
        head(hidden, labels)
    assert max(rows) == 4 and sum(rows) == count_targets(labels)  # and rows without a target are left out


def test_a_batch_without_targets_has_loss_and_gradients_zero():
    head, hidden, labels = sample(bias=True)
    loss = head(hidden, torch.full_like(labels, -100))
    loss.backward()
    assert loss == 0 and hidden.grad.eq(0).all() and head.weight.grad.eq(0).all()


def test_rms_norm_is_the_formula():
    norm = RMSNorm(8, eps=1e-3)
    norm.weight.data = torch.randn(8)
    x = torch.randn(2, 3, 8)
    assert_close(norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight)
    assert norm.bfloat16()(x.bfloat16()).dtype is torch.bfloat16
