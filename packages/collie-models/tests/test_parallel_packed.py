"""Packed rows over ranks: whatever is split, loss and gradients are those of the rows apart in one process."""

import pytest
import torch
from packs import apart, gradients_of, packed, toy_rows
from torch.testing import assert_close

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM
from collie.module import GPTLMLoss, count_targets, targets, token_loss
from collie.parallel import active_topology, cut_of, full_parameters, original_of, release_parameters
from collie.testing import golden

pytest.importorskip("deepspeed")
CASES = ("llama3", "internlm2", "moss_moon")  # the first has tied ends, the others fused projections
LENGTH = 19  # of a pack; 2 does not divide it


def load(case, **fields):
    config = CollieConfig.from_pretrained(str(golden(case)))
    for name, value in {"checkpointing": False, **fields}.items():
        setattr(config, name, value)
    return CollieModelForCausalLM.from_pretrained(golden(case), config=config).train()


def rows_apart():
    """Loss and gradients of each case in one process, row by row."""
    results = {}
    for case in CASES:
        model = load(case)
        results[case] = gradients_of(model, apart(toy_rows(model.config.vocab_size)))
    return results


def in_parts(fields):
    """The same of packs, in a layout: this rank's stage, whole on the first of its ranks."""
    results = {}
    for case in CASES:
        model = load(case, **fields)
        loss, grads = gradients_of(model, [packed(toy_rows(model.config.vocab_size), LENGTH)])
        tied = {}
        for name, parameter in model.named_parameters():
            cut, parameter.data = cut_of(parameter), grads[name]
            tied[cut.name if cut is not None else name] = original_of(parameter)
        walked = full_parameters(model, active_topology(), copies=True)
        results[case] = loss, [(tied[name] or name, whole.clone()) for name, whole in walked if whole is not None]
    return results


def in_slices():
    """Each of two ranks has half of the packs, and under ZeRO-3 a slice of each weight."""
    results = {}
    for case in CASES:
        model = load(case, ds_config={"zero_optimization": {"stage": 3}})
        rows = toy_rows(model.config.vocab_size)
        total = int(count_targets(targets(packed(rows, LENGTH))))
        own = packed(rows[active_topology().dp_rank :: 2], LENGTH)
        grads = []
        for name, p in model.named_parameters():
            p.register_post_accumulate_grad_hook(lambda p, name=name, grads=grads: grads.append((name, p.grad.clone())))
        loss = token_loss(model, own, GPTLMLoss(), total)
        loss.backward()
        release_parameters(model)
        results[case] = loss.detach().double(), grads
    return results


@pytest.fixture(scope="module")
def expected(ranks):
    [results] = ranks(1, rows_apart)
    return results


def assert_gradients_add_up(results, expected, case):
    """To 1e-5: the shares of all ranks, of a tied weight's two ends too."""
    summed = {}
    for _, grads in results:
        for name, grad in grads:
            summed[name] = summed[name] + grad if name in summed else grad
    assert summed.keys() == expected.keys()
    for name, grad in expected.items():
        assert_close(summed[name], grad, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{case}, {name}: {text}")


@pytest.mark.parametrize(
    "fields",
    [{"tp_size": 2}, {"tp_size": 2, "sequence_parallel": True}, {"pp_size": 2}, {"tp_size": 2, "pp_size": 2}],
    ids=lambda fields: " ".join(fields),
)
def test_a_model_in_parts_has_the_loss_and_gradients_of_rows_apart(ranks, expected, fields):
    results = ranks(fields.get("tp_size", 1) * fields.get("pp_size", 1), in_parts, fields)
    for case, (loss, grads) in expected.items():
        for rank in results:
            assert_close(rank[case][0], loss, atol=1e-6, rtol=1e-6)
        assert_gradients_add_up([rank[case] for rank in results], grads, case)


def test_slices_of_zero_3_have_the_loss_and_gradients_of_rows_apart(ranks, expected):
    results = ranks(2, in_slices)
    for case, (loss, grads) in expected.items():
        assert_close(torch.stack([rank[case][0] for rank in results]).sum(), loss, atol=1e-6, rtol=1e-6)
        assert_gradients_add_up([rank[case] for rank in results], grads, case)
