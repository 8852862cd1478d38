"""Each optimizer's steps are those of its paper, computed anew in numpy; a loaded state goes on as if nothing was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from collie.interfaces import ConfigError
from collie.optim import AdaLomo, Adan, Lion, Lomo, SophiaG
from collie.optim.adalomo import AdaLomo as AdaLomoOfItsModule
from collie.optim.adan import Adan as AdanOfItsModule
from collie.optim.lion import Lion as LionOfItsModule
from collie.optim.sophiag import SophiaG as SophiaGOfItsModule

STEPS = 6
SHAPES = [(5, 3), (4,), (2, 3, 4)]


def problem():
    """Parameters of one, two and three dimensions, and a gradient for each in each step, some of them zero."""
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=shape) for shape in SHAPES]
    grads = [[generator.normal(size=shape) * 3 for shape in SHAPES] for _ in range(STEPS)]
    grads[2][0][1] = 0.0  # a row without gradient
    return weights, grads


class Flat(nn.Module):
    """Parameters alone; `loss(grads)` has these gradients."""

    def __init__(self, weights, dtype=torch.float64):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.tensor(w, dtype=dtype)) for w in weights)

    def loss(self, grads):
        pairs = zip(self.weights, grads, strict=True)
        return sum((p * torch.tensor(g, dtype=p.dtype)).sum() for p, g in pairs)


def adalomo(weights, grads, lr=0.1, eps=(1e-30, 1e-3), threshold=1.0, rate=-0.8, decay=0.0):
    """Algorithm 1 of arXiv:2310.10195, a matrix at a time; vectors have a moment of every element."""
    moments = [{} for _ in weights]
    for t, step in enumerate(grads, 1):
        beta = 1 - t**rate
        for i, grad in enumerate(step):
            theta, kept = weights[i].reshape(len(weights[i]), -1), moments[i]
            g = grad.reshape(theta.shape)
            squares = g**2 + eps[0]
            if weights[i].ndim > 1:
                r = kept["r"] = beta * kept.get("r", 0) + (1 - beta) * squares.sum(1)
                c = kept["c"] = beta * kept.get("c", 0) + (1 - beta) * squares.sum(0)
                v = np.outer(r, c) / r.sum()
            else:
                v = kept["v"] = beta * kept.get("v", 0) + (1 - beta) * squares
            u = g / np.sqrt(v)
            u = u / max(1, np.sqrt((u**2).mean()) / threshold)
            size = max(eps[1], np.sqrt((theta**2).mean()))
            theta = theta * (1 - lr * size * decay) - lr * size * u
            weights[i] = theta.reshape(weights[i].shape)
    return weights


def lion(weights, grads, lr=0.01, betas=(0.9, 0.99), decay=0.0):
    """Algorithm 2 of arXiv:2302.06675."""
    m = [np.zeros_like(w) for w in weights]
    for step in grads:
        for i, g in enumerate(step):
            c = betas[0] * m[i] + (1 - betas[0]) * g
            weights[i] = weights[i] - lr * (np.sign(c) + decay * weights[i])
            m[i] = betas[1] * m[i] + (1 - betas[1]) * g
    return weights


def adan(weights, grads, lr=0.01, betas=(0.98, 0.92, 0.99), eps=1e-8, decay=0.0, norm=0.0, no_prox=False):
    """Algorithm 1 of arXiv:2208.06677 with the authors' bias corrections; here betas weigh what was before."""
    b1, b2, b3 = betas
    m, v, n = ([np.zeros_like(w) for w in weights] for _ in range(3))
    before = None
    for t, step in enumerate(grads, 1):
        if norm:
            whole = np.sqrt(sum((g**2).sum() for g in step))
            step = [g * min(1, norm / (whole + eps)) for g in step]
        before = before if before is not None else step
        for i, g in enumerate(step):
            change = g - before[i]
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * change
            n[i] = b3 * n[i] + (1 - b3) * (g + b2 * change) ** 2
            eta = lr / (np.sqrt(n[i] / (1 - b3**t)) + eps)
            moved = eta * (m[i] / (1 - b1**t) + b2 * v[i] / (1 - b2**t))
            theta = weights[i]
            weights[i] = theta * (1 - lr * decay) - moved if no_prox else (theta - moved) / (1 + lr * decay)
        before = step
    return weights


def sophia(weights, grads, lr=0.01, betas=(0.965, 0.99), rho=0.04, decay=0.1, tokens=2, sign=1):
    """Algorithm 3 of arXiv:2305.14342; every second step's gradient serves as the estimator's, too."""
    m, h = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for t, step in enumerate(grads):
        for i, g in enumerate(step):
            if t % 2 == 0:
                h[i] = betas[1] * h[i] + (1 - betas[1]) * g**2
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g * sign
            theta = weights[i] * (1 - lr * decay)
            weights[i] = theta - lr * np.clip(m[i] / np.maximum(rho * tokens * h[i], 1e-15), -1, 1)
    return weights


def stepped(make, grads_of_steps, dtype=torch.float64, model=None, optimizer=None):
    """Step as a plain torch optimizer does."""
    model = model or Flat(problem()[0], dtype)
    optimizer = optimizer or make(model.parameters())
    for t, grads in enumerate(grads_of_steps):
        model.loss(grads).backward()
        if hasattr(optimizer, "update_hessian"):
            if t % 2 == 0:
                optimizer.update_hessian()
            optimizer.step(bs=2)
        else:
            optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def fused(make, grads_of_steps, dtype=torch.float32, model=None, optimizer=None):
    """Step as a fused optimizer does."""
    model = model or Flat(problem()[0], dtype)
    optimizer = optimizer or make(model)
    for grads in grads_of_steps:
        optimizer.fused_backward(model.loss(grads))
    return model, optimizer


PLAIN = [
    (lion, lambda p: Lion(p, lr=0.01), {}),
    (
        lion,
        lambda p: Lion(p, lr=0.02, betas=(0.8, 0.95), weight_decay=0.3),
        {"lr": 0.02, "betas": (0.8, 0.95), "decay": 0.3},
    ),
    (adan, lambda p: Adan(p, lr=0.01), {}),
    (adan, lambda p: Adan(p, lr=0.01, weight_decay=0.3, foreach=False), {"decay": 0.3}),
    (adan, lambda p: Adan(p, lr=0.01, weight_decay=0.3, no_prox=True), {"decay": 0.3, "no_prox": True}),
    (adan, lambda p: Adan(p, lr=0.01, max_grad_norm=4.0, eps=1e-3), {"norm": 4.0, "eps": 1e-3}),
    (adan, lambda p: Adan(p, lr=0.01, betas=(0.9, 0.8, 0.7)), {"betas": (0.9, 0.8, 0.7)}),
    (sophia, lambda p: SophiaG(p, lr=0.01), {}),
    (sophia, lambda p: SophiaG(p, lr=0.03, rho=9.0, betas=(0.5, 0.6)), {"lr": 0.03, "rho": 9.0, "betas": (0.5, 0.6)}),
    (sophia, lambda p: SophiaG(p, lr=0.01, weight_decay=0.0, maximize=True), {"decay": 0.0, "sign": -1}),
]
FUSED = [
    (adalomo, lambda m: AdaLomo(m, lr=0.1), {}),
    (adalomo, lambda m: AdaLomo(m, lr=0.1, weight_decay=0.3), {"decay": 0.3}),
    (adalomo, lambda m: AdaLomo(m, lr=0.1, clip_threshold=0.3, decay_rate=-0.5), {"threshold": 0.3, "rate": -0.5}),
    (adalomo, lambda m: AdaLomo(m, lr=0.1, eps=(0.5, 2.0)), {"eps": (0.5, 2.0)}),
]


@pytest.mark.parametrize(("reference", "make", "arguments"), PLAIN)
def test_plain_steps_are_the_papers(reference, make, arguments):
    """In float64, so that the sign of a momentum is that of the reference's."""
    weights, grads = problem()
    ours, _ = stepped(make, grads)
    for p, expected in zip(ours.weights, reference(weights, grads, **arguments), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("reference", "make", "arguments"), FUSED)
def test_fused_steps_are_the_papers(reference, make, arguments):
    """AdaLomo computes in float32."""
    weights, grads = problem()
    ours, _ = fused(make, grads)
    for p, expected in zip(ours.weights, reference(weights, grads, **arguments), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=2e-5, atol=2e-6)


FUSED_STATES = [
    (fused, lambda m: AdaLomo(m, lr=0.1, weight_decay=0.1, no_decay="weights.1"), torch.float32),
    (fused, lambda m: AdaLomo(m, lr=0.01, stochastic_rounding=True), torch.bfloat16),
    (fused, lambda m: Lomo(m, lr=0.01, stochastic_rounding=True), torch.bfloat16),
    (fused, lambda m: Lomo(m, lr=0.01), torch.float32),
]


@pytest.mark.parametrize(
    ("run", "make", "dtype"),
    [(stepped, make, torch.float64) for reference, make, _ in PLAIN] + FUSED_STATES,
)
def test_a_loaded_state_continues_exactly(run, make, dtype):
    """Weights and state dict after three steps, in a new model and optimizer, end bit for bit where six steps end."""
    _, grads = problem()
    expected, _ = run(make, grads, dtype)
    first, optimizer = run(make, grads[:2], dtype)
    again = copy.deepcopy(first)
    other = make(again if run is fused else again.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(make, grads[2:4], dtype, first, optimizer)  # what is loaded is no longer shared with it
    run(make, grads[2:], dtype, again, other)
    for p, whole in zip(again.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, whole)


def test_states_are_named_and_shaped_as_checkpoints_expect():
    model, optimizer = fused(lambda m: AdaLomo(m), problem()[1][:1])
    matrix, vector, tensor = (optimizer.state[p] for p in model.weights)
    assert {k: tuple(v.shape) for k, v in matrix.items() if k != "step"} == {
        "exp_avg_sq_row": (5,),
        "exp_avg_sq_col": (3,),
    }
    assert (tensor["exp_avg_sq_row"].shape, tensor["exp_avg_sq_col"].shape) == ((2,), (12,))
    assert vector["exp_avg_sq"].shape == model.weights[1].shape
    assert AdaLomo.whole_states == {"exp_avg_sq_row", "exp_avg_sq_col"}
    assert Lomo.whole_states == frozenset()
    _, lion_ = stepped(lambda p: Lion(p), problem()[1][:1])
    assert all(state["exp_avg"].shape == p.shape for p, state in lion_.state.items())


def test_restarting_adan_begins_its_moments_anew():
    """As if it had just been made, so far as moments go."""
    _, grads = problem()
    model, optimizer = stepped(lambda p: Adan(p, lr=0.01), grads[:3])
    optimizer.restart_opt()
    fresh = copy.deepcopy(model)
    stepped(None, grads[3:4], model=model, optimizer=optimizer)
    stepped(lambda p: Adan(p, lr=0.01), grads[3:4], model=fresh)
    for ours, expected in zip(model.weights, fresh.weights, strict=True):
        torch.testing.assert_close(ours, expected)


def test_values_that_cannot_be_meant_are_refused():
    parameters = [nn.Parameter(torch.zeros(2))]
    model = nn.Linear(2, 2)
    for match, make in {
        r"betas=\(1.0, 0.9\)": lambda: Lion(parameters, betas=(1.0, 0.9)),
        r"lr=-1": lambda: SophiaG(parameters, lr=-1),
        r"capturable=True": lambda: SophiaG(parameters, capturable=True),
        r"fused=True": lambda: Adan(parameters, fused=True),
        r"max_grad_norm=-2": lambda: Adan(parameters, max_grad_norm=-2),
        r"decay_rate=0.8": lambda: AdaLomo(model, decay_rate=0.8),
        r"weight_decay=-1": lambda: AdaLomo(model, weight_decay=-1),
        r"no_decay='x\*' matches no parameter": lambda: AdaLomo(model, weight_decay=1.0, no_decay="x*"),
    }.items():
        with pytest.raises(ConfigError, match=match):
            make()
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([0])).sum().backward()
    with pytest.raises(ConfigError, match="sparse=False"):
        Lion(embedding.parameters()).step()


def test_existing_imports_find_the_same_classes():
    assert (AdaLomoOfItsModule, AdanOfItsModule, LionOfItsModule, SophiaGOfItsModule) == (AdaLomo, Adan, Lion, SophiaG)
