"""Models dealt to pipeline stages: how layers are dealt, and the same numbers as one process in every call."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import DynamicCache, GenerationConfig

from collie.config import CollieConfig
from collie.interfaces import ParallelSizeError
from collie.models import CollieModelForCausalLM
from collie.parallel import active_topology, cut_of, deal, original_of, set_seed
from collie.parallel._stages import balanced
from collie.testing import toy_llama_config, toy_moss_config

pytest.importorskip("deepspeed")
IDS = torch.tensor([[0, 0, 13, 40, 41, 7, 22, 81], [1, 2, 3, 4, 5, 6, 7, 8]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
LABELS = IDS.masked_fill(MASK == 0, -100)
FAMILIES = {
    "llama": (toy_llama_config, {"num_hidden_layers": 4}),
    "tied": (toy_llama_config, {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "moss": (toy_moss_config, {"n_layer": 4}),
}


def make(family="llama", *, eval_mode=True, **fields):
    describe, overrides = FAMILIES[family]
    model_overrides = {key: fields.pop(key) for key in ("sliding_window",) if key in fields}
    config = CollieConfig(model_config=describe(initializer_range=0.2, **overrides, **model_overrides))
    config.use_flash, config.checkpointing = False, False
    for name, value in fields.items():
        setattr(config, name, value)
    model = CollieModelForCausalLM.from_config(config)
    return model.train(not eval_mode)


@pytest.mark.parametrize(
    ("weights", "parts", "ends"),
    [
        ([1] * 8, 4, [2, 4, 6, 8]),
        ([1] * 7, 4, [2, 4, 6, 7]),
        ([5, 1, 1, 1, 5], 2, [3, 5]),
        ([10, 1, 1, 1, 1, 10], 3, [1, 5, 6]),
        ([1, 1, 1], 3, [1, 2, 3]),
        ([0, 1, 0, 1], 2, [3, 4]),
    ],
)
def test_the_heaviest_run_is_as_light_as_can_be(weights, parts, ends):
    """Each run has an item, and earlier runs are filled first."""
    assert balanced(weights, parts) == ends


class Block(nn.Linear):
    """A kind of layer."""


class Gate(nn.Linear):
    """Another."""


@pytest.mark.parametrize(
    ("method", "schedule", "expected"),
    [
        ("uniform", "1f1b", ("01", "23")),
        ("uniform", "interleaved", ("0", "1", "2", "3")),
        ("parameters", "1f1b", ("0", "123")),  # the embedding weighs as much as all layers
        ("type:gate", "1f1b", ("012", "3")),
    ],
)
def test_layers_are_dealt_by_the_method(method, schedule, expected):
    """Layers 1 and 3 are gates."""
    layers = nn.ModuleDict({str(i): (Gate if i % 2 else Block)(4, 4) for i in range(4)})
    config = CollieConfig(pp_size=2, pp_partition_method=method, pp_schedule=schedule)
    stages = deal(layers, [nn.Embedding(20, 4)], [nn.Linear(1, 1)], config, rank=1)
    assert stages.layers == tuple(map(tuple, expected))
    assert list(stages.own) == list(range(1, len(expected), 2))
    assert (stages.has_first, stages.has_last) == (False, True)


def test_what_cannot_be_dealt_is_refused():
    """More stages than layers, and a type that no layer has."""
    layers = nn.ModuleDict({str(i): Block(2, 2) for i in range(3)})
    with pytest.raises(ParallelSizeError, match="pp_size=2 with pp_schedule='interleaved' makes 4 stages, and the mod"):
        deal(layers, [], [], CollieConfig(pp_size=2, pp_schedule="interleaved"), 0)
    with pytest.raises(ParallelSizeError, match="pp_partition_method='type:gate' matches no layer: they are of type B"):
        deal(layers, [], [], CollieConfig(pp_size=2, pp_partition_method="type:gate"), 0)


def calls(family, **fields):
    """Logits, the losses of both ways, and the gradients that this rank has, each with what it is a part of."""
    model = make(family, eval_mode=False, **fields)
    with torch.no_grad():
        logits = model(IDS, MASK).logits
        some = model(IDS, MASK, logits_to_keep=2).logits
        inside = model(IDS, MASK, labels=LABELS, return_logits=False)
    assert inside.logits is None
    assert_close(some, logits[:, -2:])
    output = model(IDS, MASK, labels=LABELS)
    assert_close(output.loss, inside.loss)
    (output.loss * 2).backward()
    grads = {name: (original_of(p), cut_of(p), p.grad) for name, p in model.named_parameters()}
    return logits, output.loss.detach(), grads, active_topology().tp_rank


def wholes(results):
    """The whole model's gradients: ranks' parts put together, and the shares of a tied weight's two ends summed.

    What is not cut is alike on all tensor-parallel ranks of its stage.
    """
    held = {}
    for _, _, grads, tp_rank in results:
        for name, (original, cut, grad) in grads.items():
            ours = cut.name if cut is not None else name
            if cut is not None:
                _, whole = held.setdefault(ours, (original, torch.full(cut.whole, torch.nan)))
                cut.put(grad, tp_rank, whole)
            else:
                assert_close(held.setdefault(ours, (original, grad))[1], grad, atol=1e-6, rtol=1e-5)
    summed = {}
    for name, (original, whole) in held.items():
        key = original or name
        summed[key] = summed[key] + whole if key in summed else whole
    return summed


@pytest.mark.parametrize(
    ("family", "ranks", "fields"),
    [
        ("llama", 2, {"pp_size": 2}),
        ("llama", 2, {"pp_size": 2, "pp_schedule": "interleaved", "checkpointing": True}),
        ("moss", 4, {"pp_size": 4}),
        ("tied", 4, {"pp_size": 2, "tp_size": 2}),
        ("tied", 2, {"pp_size": 2, "pp_partition_method": "uniform"}),
    ],
)
def test_a_call_gives_every_rank_the_whole_result(ranks, family, fields):
    """Full logits and the loss on every rank; a loop of one's own can call backward, for all of the gradients."""
    alone = run(1, calls, family)
    [(logits, loss, _, _)], reference = alone, wholes(alone)
    results = run(ranks, calls, family, **fields)
    for their_logits, their_loss, _, _ in results:
        assert_close(their_logits, logits, atol=1e-5, rtol=1e-5)
        assert_close(their_loss, loss, atol=1e-5, rtol=1e-5)
    grads = wholes(results)
    assert grads.keys() == reference.keys()
    for name, grad in reference.items():
        assert_close(grads[name], grad, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def run(count, function, *args, **fields):
    """The results of `function` on forked ranks."""
    from collie.testing import run_ranks

    return run_ranks(count, lambda: function(*args, **fields))


def generated(**fields):
    """Of a left-padded batch: greedy with and without a cache, however that is said, a sample, beams, embeddings."""
    model = make("llama", **fields)
    tokens = {}
    for use_cache in (True, False):
        tokens[f"greedy {use_cache}"] = model.generate(
            IDS, attention_mask=MASK, max_new_tokens=8, do_sample=False, use_cache=use_cache, pad_token_id=0
        )
    torch.manual_seed(active_topology().rank)  # the ranks of a replica draw as its first one does
    tokens["sampled"] = model.generate(IDS, attention_mask=MASK, max_new_tokens=8, do_sample=True, pad_token_id=0)
    tokens["beams"] = model.generate(IDS, attention_mask=MASK, max_new_tokens=5, num_beams=2, pad_token_id=0)
    embeds = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    few = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    tokens["config"] = model.generate(IDS, GenerationConfig(use_cache=False, **few), attention_mask=MASK)
    model.generation_config.use_cache = False
    tokens["model's config"] = model.generate(IDS, attention_mask=MASK, **few)
    tokens["config over the model's"] = model.generate(
        IDS, GenerationConfig(use_cache=True, **few), attention_mask=MASK
    )
    tokens["embeddings"] = model.generate(inputs_embeds=embeds, attention_mask=MASK, **few)
    return tokens


@pytest.mark.parametrize(
    ("ranks", "fields"),
    [
        (2, {"pp_size": 2}),
        (2, {"pp_size": 2, "pp_schedule": "interleaved"}),
        (4, {"pp_size": 2, "tp_size": 2}),
        (2, {"pp_size": 2, "sliding_window": 4}),
    ],
)
def test_stages_generate_what_one_process_does(ranks, fields):
    """The same tokens on every rank, with a cache and without, greedy, sampled, with beams and after embeddings."""
    alone = {key: value for key, value in fields.items() if key == "sliding_window"}
    [expected] = run(1, generated, **alone)
    for result in run(ranks, generated, **fields):
        for kind, tokens in expected.items():
            assert torch.equal(result[kind], tokens), kind


def greedy(stop, **fields):
    """New tokens of both rows, with a cache and without, until each has drawn `stop`."""
    model = make("llama", **fields)
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": stop}
    return [
        model.generate(IDS, attention_mask=MASK, use_cache=cache, **arguments)[:, 8:].tolist()
        for cache in (True, False)
    ]


@pytest.mark.parametrize(
    ("ranks", "fields"), [(2, {"tp_size": 2}), (2, {"pp_size": 2}), (4, {"pp_size": 2, "tp_size": 2})]
)
def test_generation_stops_where_every_row_has_ended(ranks, fields):
    """The row that ends first is padded until the other has, and no more is drawn."""
    [[free, _]] = run(1, greedy, None)
    stop = next(token for token in free[0] if token in free[1])
    lengths = [row.index(stop) + 1 for row in free]
    assert lengths[0] != lengths[1] and max(lengths) < 8
    expected = [row[:length] + [0] * (max(lengths) - length) for row, length in zip(free, lengths, strict=True)]
    assert run(ranks, greedy, stop, **fields) == [[expected, expected]] * ranks


def with_foreign_cache():
    """Refused by either call, and what all ranks do next works."""
    model = make("llama", pp_size=2)
    for call in (model.generate, model):
        with pytest.raises(ValueError, match=r"DynamicCache knows .* \(pp_size=2\)\. Use model\.new_cache\(\)"):
            call(IDS, past_key_values=DynamicCache(config=model.config))
    arguments = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    return [model.generate(IDS, past_key_values=cache, **arguments).tolist() for cache in (model.new_cache(), None)]


def test_a_cache_that_not_every_stage_can_use_is_refused_on_every_rank():
    """One made for the model's stages is taken."""
    first, last = run(2, with_foreign_cache)
    assert first[0] == first[1] and first == last


def dropped(**fields):
    """Whether a training forward with dropout has the same gradients with recomputation and without, from one seed;
    what each of this rank's first layers draws on the way, and what is drawn after it."""
    found, inside = [], []
    for checkpointing in (False, True):
        model = make("llama", eval_mode=False, dropout=0.3, checkpointing=checkpointing, **fields)
        first = next(iter(model.layers.values()))
        first.register_forward_pre_hook(lambda *_: inside.append(torch.rand(3)))
        set_seed(model.collie_config)
        model(IDS, MASK, labels=LABELS).loss.backward()
        found.append([p.grad for p in model.parameters()])
    noise = torch.rand(3)
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True)), inside[0], noise


def test_recomputing_a_stage_gives_the_same_gradients_to_the_bit():
    """Also with dropout. Stages drop by other numbers than each other, and go on with equal ones."""
    (same, first, noise), (also, second, their_noise) = run(2, dropped, pp_size=2)
    assert same and also
    assert not torch.equal(first, second)
    assert torch.equal(noise, their_noise)


def under_autocast(**fields):
    """Logits and gradients of a model of which every layer's output is in autocast's dtype, not the weights'."""
    model = make("llama", eval_mode=False, **fields)
    handed = []
    for layer in model.layers.values():
        layer.register_forward_hook(lambda _, __, x_BSE: x_BSE.bfloat16())
        layer.register_forward_pre_hook(lambda _, given: handed.append(given[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(IDS, MASK, labels=LABELS)
    output.loss.backward()
    return output.loss.item(), output.logits, {name: p.grad for name, p in model.named_parameters()}, set(handed)


def test_stages_hand_on_what_the_next_one_receives_under_autocast():
    """In the weights' dtype, whatever the last layer gave; the gradient comes back in the same."""
    [(loss, logits, grads, dtypes)] = run(1, under_autocast)
    assert torch.bfloat16 in dtypes
    for schedule in ("1f1b", "interleaved"):
        for their_loss, their_logits, their_grads, _ in run(2, under_autocast, pp_size=2, pp_schedule=schedule):
            assert their_loss == pytest.approx(loss, abs=1e-2)
            assert_close(their_logits, logits, atol=0.05, rtol=0.05)  # also of one dtype, autocast's
            for name, grad in their_grads.items():
                assert (grad - grads[name]).norm() < 0.02 * grads[name].norm()  # sums in bf16 round differently


def test_parameters_outside_the_known_parts_are_refused():
    """They would be trained on each stage apart."""
    from collie.models._stages import keep_stages

    def attempt():
        config = CollieConfig(model_config=toy_llama_config(num_hidden_layers=2))
        model = CollieModelForCausalLM.from_config(config)
        model.positions = nn.Embedding(4, 4)
        config.pp_size = 2
        from dataclasses import replace

        with pytest.raises(ParallelSizeError, match="has parameters in positions, too"):
            keep_stages(model, replace(active_topology(), pp_size=2))

    run(1, attempt)


def frozen_first_stage():
    """Backward through a stage that has nothing to train, and the gradients of the other."""
    model = make("llama", eval_mode=False, pp_size=2)
    if model.stages.has_first:
        model.requires_grad_(False)
    model(IDS, MASK, labels=LABELS).loss.backward()
    return [p.grad is not None for p in model.parameters()]


def test_a_stage_with_nothing_to_train_passes_backward_on():
    """Its rank meets the others' exchanges all the same."""
    first, last = run(2, frozen_first_stage)
    assert not any(first) and all(last)
