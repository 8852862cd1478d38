"""Models split over tensor-parallel ranks: the same numbers as one process, in every call."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tensor_ranks import IDS, LABELS, make, whole_gradients
from torch import nn
from torch.testing import assert_close

from collie.config import CollieConfig
from collie.interfaces import ParallelSizeError
from collie.models import CollieModelForCausalLM
from collie.module import Attention, LMHead, Mask, Rope
from collie.parallel import (
    Column,
    Plan,
    Row,
    active_topology,
    engine_for,
    env,
    full_parameters,
    fused,
    materialise,
    setup_distribution,
    shard_of,
    squared_norm,
)  # fmt: skip
from collie.testing import golden

pytest.importorskip("deepspeed")


def calls(toy, tp, checkpointing=False):
    """Logits, the loss in the head, the gradients of both ways to the loss, and their norm."""
    model, _ = make(toy, tp, checkpointing=checkpointing)
    with torch.no_grad():
        logits = model(IDS).logits
    model.train()
    full = model(IDS, labels=LABELS).loss  # through gathered logits
    full.backward()
    through_logits = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = model(IDS, labels=LABELS, return_logits=False).loss
    loss.backward()
    for parameter, other in zip(model.parameters(), through_logits, strict=True):
        assert_close(parameter.grad, other, atol=1e-6, rtol=1e-4)
    topology = active_topology()
    squares = [(shard_of(p, topology), p.grad.square().sum()) for p in model.parameters()]
    norm = squared_norm(squares, topology).sqrt().item()
    return logits, loss.detach(), full.detach(), whole_gradients(model), norm


@pytest.mark.parametrize(
    ("toy", "tp"), [("llama", 2), ("llama", 4), ("tied", 2), ("moss", 2), ("moss", 4), ("qwen3", 2), ("qwen3", 4)]
)
def test_forward_gradients_and_norm_equal_one_process(ranks, toy, tp):
    """Also with 2 key/value heads on 4 ranks, and with 97 tokens, which neither 2 nor 4 divides.

    Qwen3's norms of single heads are whole on each rank, and so is their gradient: that of all ranks' heads.
    """
    [(logits, loss, full, grads, norm)] = ranks(1, calls, toy, 1)
    results = ranks(tp, calls, toy, tp)
    for ours in results:
        assert_close(ours[0], logits, atol=1e-5, rtol=0)
        assert torch.equal(ours[0], results[0][0])  # bit for bit among ranks, or they would sample different tokens
        assert_close(ours[1], loss, atol=1e-5, rtol=0)
        assert_close(ours[2], full, atol=1e-5, rtol=0)
        assert ours[4] == pytest.approx(norm, rel=1e-5)
    assert results[0][3].keys() == grads.keys()
    for name, grad in grads.items():
        assert_close(results[0][3][name], grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_recomputed_layers_give_the_same_gradients(ranks):
    once, again = ranks(2, calls, "llama", 2)[0], ranks(2, calls, "llama", 2, True)[0]
    assert all(torch.equal(once[3][name], again[3][name]) for name in once[3])


class Fused(nn.Module):
    """Attention whose fused projection has 2 key/value heads, and a bias."""

    def __init__(self):
        super().__init__()
        self.attention = Attention(16, 8, 2, 4, index=0, bias=True, fused=True, use_flash=False)
        self.rope = Rope(4)

    def forward(self, x_BSE):
        length, device = x_BSE.shape[1], x_BSE.device
        return self.attention(x_BSE, self.rope.span(0, length, device), Mask.build(None, length, 0, device))


def fused_attention(tp):
    config = CollieConfig()
    config.tp_size = tp
    topology = setup_distribution(config)
    with torch.device("meta"):
        model = Fused()
    if tp > 1:
        plan = Plan({"attention.qkv": Column(layout=fused("q", "k", "v")), "attention.out": Row()})
        plan.apply(model, topology)

    def fill(name, shape, start, stop, columns=None):
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))
        return (whole if columns is None else whole[:, columns[0] : columns[1]]).flatten()[start:stop]

    materialise(model, config, topology, torch.float32, fill)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    output = model(x)
    (output * torch.linspace(-1, 1, 16)).sum().backward()
    grads = [(shard_of(p, topology), p.grad.square().sum()) for p in model.parameters()]
    norm = squared_norm(grads, topology).sqrt().item()
    return output.detach(), x.grad, norm, whole_gradients(model)


@pytest.mark.parametrize("tp", [2, 4])
def test_fused_keys_and_values_shared_by_ranks(ranks, tp):
    """The part of a fused weight that several ranks hold gets the gradient of all of them, and is counted once."""
    [(output, x_grad, norm, grads)] = ranks(1, fused_attention, 1)
    results = ranks(tp, fused_attention, tp)
    for ours in results:
        assert_close(ours[0], output, atol=1e-5, rtol=1e-5)
        assert_close(ours[1], x_grad, atol=1e-5, rtol=1e-4)
        assert ours[2] == pytest.approx(norm, rel=1e-5)
    for name, grad in grads.items():
        assert_close(results[0][3][name], grad, atol=1e-4, rtol=1e-4)


def head_loss(tp, rows, entries, chunk):
    """Sum and gradients of a head of `entries` tokens that is walked over in several chunks."""
    from collie.module import _head
    from collie.parallel import VocabColumn

    _head._CHUNK_ROWS, _head._CHUNK_ELEMENTS = chunk, 1
    config = CollieConfig()
    config.tp_size = tp
    topology = setup_distribution(config)
    with torch.device("meta"):
        model = nn.ModuleDict({"head": LMHead(6, entries)})
    if tp > 1:
        Plan({"head": VocabColumn()}).apply(model, topology)
    generator = torch.Generator().manual_seed(0)
    weights = {
        "head.weight": torch.randn(entries, 6, generator=generator) * 3,
        "head.bias": torch.randn(entries, generator=generator),
    }
    materialise(model, config, topology, torch.float32, lambda name, shape, a, b: weights[name].flatten()[a:b])
    hidden = torch.randn(1, rows, 6, generator=generator).requires_grad_()
    labels = torch.randint(entries, (1, rows), generator=generator)
    labels[0, 3] = -100
    total = model["head"](hidden, labels)
    total.backward()
    reference = F.linear(hidden.detach(), weights["head.weight"], weights["head.bias"])[0, :-1]
    expected = F.cross_entropy(reference, labels[0, 1:], ignore_index=-100, reduction="sum")
    return total.detach(), expected, hidden.grad, whole_gradients(model)


@pytest.mark.parametrize("entries", [3, 10, 97])  # of 3 tokens on 4 ranks the last has none
def test_loss_without_gathered_logits(ranks, entries):
    [(total, expected, hidden_grad, grads)] = ranks(1, head_loss, 1, 11, entries, 4)
    assert_close(total, expected, atol=1e-4, rtol=1e-5)
    results = ranks(4, head_loss, 4, 11, entries, 4)
    for ours in results:
        assert_close(ours[0], expected, atol=1e-4, rtol=1e-5)
        assert_close(ours[2], hidden_grad, atol=1e-5, rtol=1e-4)
    for name, grad in grads.items():
        assert_close(results[0][3][name], grad, atol=1e-5, rtol=1e-4)


def training_never_gathers():
    """What the collectives of a training step carry, in elements."""
    import torch.distributed as dist

    model, _ = make("llama", 2)
    model.train()
    sizes = []
    reduce, gather = dist.all_reduce, dist.all_gather
    dist.all_reduce = lambda x, *a, **k: (sizes.append(x.numel()), reduce(x, *a, **k))[1]
    dist.all_gather = lambda parts, x, **k: (sizes.append(x.numel() * len(parts)), gather(parts, x, **k))[1]
    model(IDS, labels=LABELS, return_logits=False).loss.backward()
    return sizes


def test_training_exchanges_hidden_states_only(ranks):
    """2 all-reduces a layer and direction, 1 for the embedding and 1 for the head's input; of the loss 2 small ones."""
    for sizes in ranks(2, training_never_gathers):
        assert sizes.count(IDS.numel() * 32) == 2 * 2 * 2 + 2
        assert sorted(size for size in sizes if size != IDS.numel() * 32) == [12, 24]  # of 12 targets


def generate(toy, tp, sampled):
    model, _ = make(toy, tp)
    torch.manual_seed(7 + (env.tp_rank if tp > 1 else 0))  # a script that seeds its ranks apart
    padded, keep = F.pad(IDS, (2, 0)), F.pad(torch.ones_like(IDS), (2, 0))
    arguments = {"max_new_tokens": 8, "do_sample": sampled, "pad_token_id": 0, "eos_token_id": None}
    return [
        model.generate(padded, attention_mask=keep, use_cache=cache, **arguments).tolist() for cache in (True, False)
    ]


@pytest.mark.parametrize("sampled", [False, True])
def test_generation_draws_the_same_tokens_as_one_process(ranks, sampled):
    [expected] = ranks(1, generate, "llama", 1, sampled)
    for ours in ranks(2, generate, "llama", 2, sampled):
        assert ours == expected


def out_of_range(toy, tp):
    """What ids and labels that are no tokens raise, and the logits after it."""
    model, _ = make(toy, tp)
    for wrong in (97, 98, -1):  # the first is where 2 ranks pad 97 tokens
        ids = torch.where(IDS == 13, wrong, IDS)
        calls = [(ids, None, True), (IDS, ids, True), (IDS, ids, False)]
        for tokens, labels, return_logits in calls:
            with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
                model(tokens, labels=labels, return_logits=return_logits)
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("toy", ["llama", "moss"])
def test_ids_that_are_no_tokens_are_errors_on_every_rank(ranks, toy):
    """As in one process, and before an exchange that others would wait in: they go on together."""
    [logits] = ranks(1, out_of_range, toy, 1)
    for ours in ranks(2, out_of_range, toy, 2):
        assert_close(ours, logits, atol=1e-5, rtol=0)


def save(case, tp, stage, folder):
    config = CollieConfig.from_pretrained(str(golden(case)))
    config.tp_size = tp
    config.ds_config = {"zero_optimization": {"stage": stage}}
    model = CollieModelForCausalLM.from_pretrained(golden(case), config=config)
    with torch.no_grad():
        before = model(IDS).logits
    model.save_pretrained(folder, max_shard_size="50KB")
    model.load_weights(folder)
    with torch.no_grad():
        return before, model(IDS).logits


@pytest.mark.parametrize(("case", "count", "stage"), [("llama3", 2, 0), ("moss_moon", 2, 3), ("llama3", 4, 3)])
def test_saving_gives_back_what_was_loaded(ranks, case, count, stage, tmp_path):
    """Names, shapes, row order and values of the checkpoint's tensors, without the vocabulary's padding."""
    for before, after in ranks(count, save, case, 2, stage, tmp_path / "saved"):
        assert torch.equal(before, after)
    source, saved = load_file(golden(case) / "model.safetensors"), {}
    for shard in (tmp_path / "saved").glob("*.safetensors"):
        saved |= load_file(shard)
    assert saved.keys() == {name for name in source if "causal_mask" not in name}
    assert all(torch.equal(saved[name], source[name]) for name in saved)


def read_amounts(stage):
    """How many elements of each tensor this rank's load asked of the checkpoint."""
    from collie.models.weights import _reader

    asked = {}
    rows = _reader._SafetensorsReader.rows

    def counting(self, name, ranges, columns=None, **dtype):
        values = rows(self, name, ranges, columns, **dtype)
        asked[name] = asked.get(name, 0) + values.numel()
        return values

    _reader._SafetensorsReader.rows = counting
    config = CollieConfig.from_pretrained(str(golden("llama3")))
    config.tp_size = 2
    config.ds_config = {"zero_optimization": {"stage": stage}}
    CollieModelForCausalLM.from_pretrained(golden("llama3"), config=config)
    return asked


def test_a_rank_reads_its_part_only(ranks):
    """tp 2: half of what is split and all of the norms; with ZeRO-3 over 2 dp ranks half of that, in whole rows."""
    source = {name: t.numel() for name, t in load_file(golden("llama3") / "model.safetensors").items()}
    for count, stage in ((2, 0), (4, 3)):
        for asked in ranks(count, read_amounts, stage):
            for name, amount in asked.items():
                share = 1 if "norm" in name else 2
                limit = source[name] / share / (count // 2)
                assert amount <= limit + (144 if count == 4 else 64), (name, amount, limit)


def steps(toy, tp, stage, clip, fields=()):
    """Three SGD steps through DeepSpeed on equal global batches; the norms it measured and the whole weights."""
    model, config = make(toy, tp, stage, **dict(fields))
    config.ds_config = {"zero_optimization": {"stage": stage}, "gradient_clipping": clip}
    config.train_micro_batch_size = 2 // config.dp_size
    engine = engine_for(model, config, torch.optim.SGD(model.parameters(), lr=0.1))
    topology = active_topology()
    row = slice(topology.dp_rank, topology.dp_rank + 1) if topology.dp_size == 2 else slice(None)
    norms = []
    model.train()
    for _ in range(3):
        loss = engine(IDS[row], labels=LABELS[row], return_logits=False, num_items_in_batch=12).loss
        engine.backward(loss * topology.dp_size)
        engine.step()
        norms.append(float(engine.get_global_grad_norm() or 0))
    engine.release_parameters()
    return norms, dict(full_parameters(model, topology))


SPLIT = {"sequence_parallel": True, "checkpointing": True}


@pytest.mark.parametrize(
    ("toy", "tp", "dp", "stage", "fields"),
    [
        ("llama", 2, 1, 0, {}),
        ("tied", 2, 1, 3, {}),
        ("llama", 4, 1, 1, {}),  # 2 key/value heads on 4 ranks
        ("llama", 2, 2, 2, {}),
        ("moss", 2, 2, 1, {}),
        ("moss", 2, 2, 3, {}),
        ("tied", 2, 1, 0, SPLIT),
        ("qwen3", 4, 1, 1, SPLIT),
        ("moss", 2, 2, 2, SPLIT),
        ("qwen3", 2, 2, 3, SPLIT),
    ],
)
def test_clipped_training_through_deepspeed(ranks, toy, tp, dp, stage, fields):
    """The norm that DeepSpeed clips by is that of the whole gradient, and three steps end at one process's weights."""
    [(norms, weights)] = ranks(1, steps, toy, 1, 1, 0.5)
    assert min(norms) > 1
    results = ranks(tp * dp, steps, toy, tp, stage, 0.5, fields, timeout=120)
    for ours in results:
        if stage > 0:
            assert ours[0] == pytest.approx(norms, rel=1e-4)
    for name, weight in weights.items():
        assert_close(results[0][1][name], weight, atol=1e-5, rtol=1e-4)


def wrong_size():
    with pytest.raises(ParallelSizeError, match=r"tp_size=3 does not divide num_attention_heads=4 \(llama\)") as caught:
        make("llama", 3)
    return str(caught.value)


def test_a_size_that_does_not_fit_is_refused_on_every_rank(ranks):
    assert len(set(ranks(3, wrong_size))) == 1
