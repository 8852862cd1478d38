"""AdaLomo's statistics are those of whole parameters: each layout ends at the weights of one process."""

import pytest
import torch
from toy_training import make_config, make_model
from transformers import LlamaConfig

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM
from collie.optim import AdaLomo
from collie.parallel import cut_of, full_parameters, setup_distribution, shard_of
from collie.testing import golden, run_ranks, toy_config

IDS = torch.randint(3, 97, (4, 9), generator=torch.Generator().manual_seed(5))
LR, STEPS = 0.05, 3


def trained(tp, stage, accumulate=False, tied=False, clip=None, case=None):
    """The norms that clipping measured, the whole weights, and each parameter's state on this rank."""
    config = make_config(stage, tp_size=tp)
    if case is None:
        config.model_config = toy_config(LlamaConfig, initializer_range=0.4, tie_word_embeddings=tied)
    else:
        config.model_config = CollieConfig.from_pretrained(str(golden(case))).model_config
    topology = setup_distribution(config)
    model = make_model(config) if case is None else CollieModelForCausalLM.from_pretrained(golden(case), config=config)
    model.train()
    optimizer = AdaLomo(model, lr=LR, clip_grad_norm=clip, weight_decay=0.1, no_decay="*norm*")
    mine, norms = IDS.chunk(topology.dp_size)[topology.dp_rank], []
    loss_of = lambda ids: model(ids, labels=ids, return_logits=False, num_items_in_batch=32).loss * topology.dp_size  # noqa: E731
    for _ in range(STEPS):
        if accumulate:
            for ids in mine.chunk(2):
                optimizer.accumulate(loss_of(ids))
            norms.append(optimizer.apply_accumulated())
            continue
        loss = loss_of(mine)
        if clip is not None:
            norms.append(optimizer.grad_norm(loss))
            loss = loss_of(mine) if optimizer.needs_second_forward else loss
        optimizer.fused_backward(loss)
    return norms, dict(full_parameters(model, topology)), states(model, optimizer)


def states(model, optimizer):
    """By the whole parameter's name: its state and the shape of what this rank holds."""
    found = {}
    for name, parameter in model.named_parameters():
        cut, shard = cut_of(parameter), shard_of(parameter, optimizer.topology)
        found[cut.name if cut is not None else name] = (dict(optimizer.state[parameter]), shard.data.shape)
    return found


@pytest.fixture(scope="module")
def one_process():
    made = {}

    def get(**arguments):
        key = str(sorted(arguments.items()))
        if key not in made:
            [made[key]] = run_ranks(1, lambda: trained(1, 0, **arguments))
        return made[key]

    return get


@pytest.mark.parametrize(
    ("ranks", "tp", "stage", "arguments"),
    [
        (2, 1, 0, {}),
        (2, 1, 3, {}),
        (4, 1, 3, {}),  # slices that begin and end within rows
        (2, 2, 0, {"tied": True}),
        (2, 2, 3, {"accumulate": True}),
        (4, 4, 0, {}),  # 2 key/value heads on 4 ranks: each counts once
        (4, 2, 3, {"clip": 0.5, "tied": True}),
        (4, 2, 1, {"accumulate": True, "clip": 0.5}),
        (4, 4, 0, {"case": "internlm2"}),  # of a fused projection a rank holds queries, and two hold keys and values
        (4, 4, 3, {"case": "chatglm2"}),  # and of its bias
    ],
    ids=str,
)
def test_every_layout_equals_one_process(one_process, ranks, tp, stage, arguments):
    """Row and column moments are whole and equal on every rank, others are a shard's.

    An update divides by roots of moments, and so magnifies rounding where gradients are small: steps are about 2e-2.
    """
    alike = {k: v for k, v in arguments.items() if k != "accumulate"}
    expected_norms, expected, expected_states = one_process(**alike)
    results = run_ranks(ranks, lambda: trained(tp, stage, **arguments))
    for name, weight in expected.items():
        if name.endswith("qkv.bias"):  # of keys it has no gradient but rounding, of whose sign an update is
            continue
        torch.testing.assert_close(results[0][1][name], weight, atol=5e-5, rtol=0)
    for norms, _, found in results:
        assert norms == (pytest.approx(expected_norms, rel=1e-4) if "clip" in arguments else norms)
        for name, (state, shape) in found.items():
            assert state["step"] == STEPS
            assert state.keys() == expected_states[name][0].keys()
            for key in AdaLomo.whole_states & state.keys():
                torch.testing.assert_close(state[key], expected_states[name][0][key], rtol=1e-3, atol=1e-9)
                assert torch.equal(state[key], results[0][2][name][0][key])
            if "exp_avg_sq" in state:
                assert state["exp_avg_sq"].shape == shape


@pytest.mark.parametrize("rounding", [False, True])
def test_bfloat16_weights_train_as_float32_do_and_replicas_stay_equal(rounding):
    """Losses to a bfloat16's precision; under plain data parallelism both ranks hold the same bits."""

    def run(stage, dtype):
        config = make_config(stage)
        config.model_config = toy_config(LlamaConfig, initializer_range=0.4)
        topology = setup_distribution(config)
        model = make_model(config, dtype)
        model.train()
        optimizer = AdaLomo(model, lr=LR / 5, stochastic_rounding=rounding and dtype is torch.bfloat16)
        mine, losses = IDS.chunk(topology.dp_size)[topology.dp_rank], []
        for _ in range(STEPS):
            loss = model(mine, labels=mine, return_logits=False, num_items_in_batch=32).loss
            losses.append(loss.item())
            optimizer.fused_backward(loss * topology.dp_size)
        assert all(v.dtype is torch.float32 for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))
        return losses, [shard_of(p, topology).data.clone() for p in model.parameters()]

    [(expected, _)] = run_ranks(1, run, 0, torch.float32)
    for stage in (0, 3):
        (first, weights), (second, others) = run_ranks(2, run, stage, torch.bfloat16)
        assert [sum(pair) for pair in zip(first, second, strict=True)] == pytest.approx(expected, rel=2e-2)
        assert stage == 3 or all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    assert expected[-1] < 0.9 * expected[0]
