"""Activations between blocks that tensor-parallel ranks split along the sequence, and what is dropped of them."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tensor_ranks import IDS, LABELS, make, whole_gradients
from torch.testing import assert_close

from collie.parallel import active_topology, apart, cut_of, set_seed, shard_of, squared_norm

pytest.importorskip("deepspeed")


def calls(toy, tp, length, sequence):
    """Logits, the losses of both ways to them, all gradients and their norm; the gradient of given embeddings."""
    model, _ = make(toy, tp, sequence_parallel=sequence)
    ids, labels = IDS[:, :length], LABELS[:, :length]
    model.train()
    out = model(ids, labels=labels)
    out.loss.backward()
    through_logits = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = model(ids, labels=labels, return_logits=False).loss
    loss.backward()
    for parameter, other in zip(model.parameters(), through_logits, strict=True):
        assert_close(parameter.grad, other, atol=1e-6, rtol=1e-4)
    topology = active_topology()
    squares = [(shard_of(p, topology), p.grad.square().sum()) for p in model.parameters()]
    norm = squared_norm(squares, topology).sqrt().item()
    embeds = torch.randn(2, length, 32, generator=torch.Generator().manual_seed(3)).requires_grad_()
    [grad] = torch.autograd.grad(model(inputs_embeds=embeds, labels=labels).loss, embeds)
    return out.logits.detach(), out.loss.detach(), loss.detach(), norm, grad, whole_gradients(model)


@pytest.mark.parametrize(
    ("toy", "tp", "length"),
    [
        ("tied", 2, 8),
        ("tied", 2, 7),
        ("llama", 4, 5),  # parts of 2 positions: the last rank has none
        ("moss", 2, 7),
        ("qwen3", 4, 7),  # whose norms of keys are of heads that two ranks hold
    ],
)
def test_split_along_the_sequence_equals_one_process(ranks, toy, tp, length):
    [(logits, full, loss, norm, embeds_grad, grads)] = ranks(1, calls, toy, 1, length, False)
    results = ranks(tp, calls, toy, tp, length, True)
    for ours in results:
        assert_close(ours[0], logits, atol=1e-5, rtol=0)
        assert torch.equal(ours[0], results[0][0])
        assert_close(ours[1], full, atol=1e-5, rtol=0)
        assert_close(ours[2], loss, atol=1e-5, rtol=0)
        assert ours[3] == pytest.approx(norm, rel=1e-5)
        assert_close(ours[4], embeds_grad, atol=1e-6, rtol=1e-4)
    for name, grad in grads.items():
        assert_close(results[0][5][name], grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def traffic():
    """What a training step exchanges, by kind, in elements of the whole; and what the layers are given."""
    from collie.parallel import _sequence

    model, _ = make("llama", 2, sequence_parallel=True)
    model.train()
    sizes = {"gather": [], "scatter": [], "reduce": []}
    gather, scatter, reduce = _sequence._all_gather, _sequence._reduce_scatter, dist.all_reduce
    _sequence._all_gather = lambda out, x, **k: (sizes["gather"].append(out.numel()), gather(out, x, **k))
    _sequence._reduce_scatter = lambda out, x, **k: (sizes["scatter"].append(x.numel()), scatter(out, x, **k))
    dist.all_reduce = lambda x, *a, **k: (sizes["reduce"].append(x.numel()), reduce(x, *a, **k))[1]
    shapes = []
    for layer in model.layers.values():
        layer.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    model(IDS, labels=LABELS, return_logits=False).loss.backward()
    return sizes, shapes


def test_blocks_gather_half_sequences_and_scatter_their_outputs(ranks):
    """Two of each a layer and direction. Summed are the head's input, two small ones of the loss, and 5 norms."""
    hidden = IDS.numel() * 32
    for sizes, shapes in ranks(2, traffic):
        assert shapes == [(2, 4, 32)] * 2
        assert sizes["gather"] == [hidden] * (2 * 2 * 2 + 2)  # and the embedding's gradient, and the last norm's output
        assert sizes["scatter"] == [hidden] * (2 * 2 * 2 + 1)  # and the embedding
        assert sorted(sizes["reduce"]) == [12, 24, *[32] * 5, hidden]


def with_a_cache(sequence):
    model, _ = make("llama", 2, sequence_parallel=sequence)
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    tokens = [model.generate(IDS[:, :7], use_cache=cache, **arguments).tolist() for cache in (True, False)]
    with torch.no_grad():
        logits = model(IDS, use_cache=True).logits
    if sequence:
        with pytest.raises(ValueError, match=r"sequence_parallel=True .* torch.no_grad\(\)"):
            model(IDS, use_cache=True)
    return tokens, logits, model(IDS).logits.detach()


def test_generation_keeps_the_stream_whole(ranks):
    whole, split = ranks(2, with_a_cache, False)[0], ranks(2, with_a_cache, True)[0]
    assert whole[0][0] == whole[0][1] == split[0][0] == split[0][1]
    assert torch.equal(whole[1], split[1])
    assert_close(split[2], whole[2], atol=1e-6, rtol=0)


def dropped(use_flash, sequence, checkpointing):
    """What dropout did on this rank to attention weights and to the stream, what is drawn after it; loss, gradients."""
    fields = {"use_flash": use_flash, "sequence_parallel": sequence, "checkpointing": checkpointing}
    model, config = make("llama", 2, dropout=0.5, **fields)
    set_seed(config)
    model.train()
    streams, drop = [], F.dropout

    def watched(x, p, training):
        result = drop(x, p, training)
        if x.shape[-1] == 32:
            streams.append((result == 0) & (x != 0))
        return result

    F.dropout = watched
    with apart(active_topology()):
        weights = drop(torch.ones(1, 2, 8, 8), 0.5, True)
    loss = model(IDS, labels=LABELS, return_logits=False).loss
    after = torch.rand(3)
    loss.backward()
    replicated = [p.grad for p in model.parameters() if cut_of(p) is None]
    return weights, streams[:5], after, loss.detach(), replicated, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("use_flash", [False, True])
def test_dropout_differs_where_activations_are_split_and_only_there(ranks, use_flash, sequence):
    first, second = ranks(2, dropped, use_flash, sequence, False)
    assert not torch.equal(first[0], second[0])  # attention weights: other heads, other masks
    for ours, theirs in zip(first[1], second[1], strict=True):
        assert ours.any() and ours.shape[1] == (4 if sequence else 8)
        assert torch.equal(ours, theirs) != sequence  # the stream: other elements only where it is split
    assert torch.equal(first[2], second[2])  # and then both go on alike
    assert torch.equal(first[3], second[3])
    assert all(torch.equal(a, b) for a, b in zip(first[4], second[4], strict=True))


@pytest.mark.parametrize("sequence", [False, True])
def test_recomputed_layers_drop_what_they_dropped(ranks, sequence):
    kept, recomputed = (ranks(2, dropped, True, sequence, checkpointing) for checkpointing in (False, True))
    for once, again in zip(kept, recomputed, strict=True):
        assert torch.equal(once[3], again[3])
        assert all(torch.equal(a, b) for a, b in zip(once[5], again[5], strict=True))
