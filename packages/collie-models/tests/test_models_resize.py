"""Another number of tokens: old rows stay, new ones are the same in every layout, and all of it can be saved."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from collie.config import CollieConfig
from collie.interfaces import CheckpointError
from collie.models import CollieModelForCausalLM, _resize
from collie.parallel import active_topology, engine_for, full_parameters
from collie.testing import golden, toy_llama_config, toy_moss_config

pytest.importorskip("deepspeed")
IDS = torch.tensor([[5, 9, 13, 40, 41, 7, 22, 81], [1, 2, 3, 4, 5, 6, 7, 8]])
TOYS = {
    "llama": toy_llama_config(initializer_range=0.2),  # 97 tokens
    "tied": toy_llama_config(initializer_range=0.2, tie_word_embeddings=True),
    "moss": toy_moss_config(initializer_range=0.2),  # the head has a bias
}


@pytest.fixture(autouse=True)
def end_process_group():
    """Making a model makes this process a world of one; tests that fork ranks need it to be none."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def make(toy, **fields):
    config = CollieConfig(model_config=copy.deepcopy(TOYS[toy]), **fields)
    return CollieModelForCausalLM.from_config(config)


def matrices(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.startswith(("embed", "head"))}


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("mean_resizing", [True, False])
def test_old_rows_stay_and_new_ones_are_as_asked(toy, mean_resizing):
    model = make(toy)
    if toy == "moss":
        torch.nn.init.normal_(model.head.bias, mean=3.0)
    before, embed = matrices(model), model.embed
    assert model.resize_token_embeddings(1097, mean_resizing=mean_resizing) is embed is model.embed
    assert model.config.vocab_size == embed.num_embeddings == model.head.out_features == 1097
    assert (model.head.weight is embed.weight) == (toy == "tied")
    for name, new in matrices(model).items():
        old, added = before[name], new[97:]
        assert torch.equal(new[:97], old) and len(added) == 1000
        if mean_resizing:
            assert_close(added, old.mean(0).expand_as(added), atol=2e-4, rtol=0)  # 6 deviations
            assert_close(added.std(0), old.std(0) * 1e-9**0.5, rtol=0.2, atol=0)
        elif new.dim() == 1:
            assert added.eq(0).all()
        else:
            assert added.std().item() == pytest.approx(0.2, rel=0.02)
    assert model(IDS).logits.shape == (2, 8, 1097)


def test_it_is_close_to_what_transformers_makes_of_the_same_model(tmp_path):
    """Equal old rows; their new ones are draws from the same distribution, whose spread is 3e-5 of the old one's."""
    make("llama").save_pretrained(tmp_path)
    ours, theirs = CollieModelForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    ours.resize_token_embeddings(100, pad_to_multiple_of=8)
    theirs.resize_token_embeddings(100, pad_to_multiple_of=8)
    assert ours.config.vocab_size == theirs.config.vocab_size == 104
    with torch.no_grad():
        assert_close(ours(IDS).logits, theirs.eval()(IDS).logits, atol=1e-3, rtol=0)


def test_sizes_that_change_nothing_and_sizes_that_shrink():
    model = make("tied")
    weight = model.embed.weight
    assert model.resize_token_embeddings() is model.resize_token_embeddings(97) is model.embed
    assert model.embed.weight is weight
    before = matrices(model)["embed.weight"]
    model.resize_token_embeddings(90)
    assert torch.equal(model.embed.weight, before[:90]) and model.head.weight is model.embed.weight
    model.resize_token_embeddings(pad_to_multiple_of=16)
    assert model.config.vocab_size == 96 and torch.equal(model.embed.weight[:90], before[:90])
    for wrong in ({"new_num_tokens": 0}, {"new_num_tokens": 9.5}, {"pad_to_multiple_of": -8}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))}=.* is no number of tokens"):
            model.resize_token_embeddings(**wrong)


def resized(toy, layout, sizes, mean_resizing, folder=None):
    """Whole parameters on each stage's first rank, and logits, after the vocabulary was given each size in turn.

    layout: (pp, tp, ZeRO stage).
    """
    pp, tp, stage = layout
    model = make(toy, pp_size=pp, tp_size=tp, ds_config={"zero_optimization": {"stage": stage}})
    if model.embed is not None:
        model.embed.weight.requires_grad_(False)
    for size in sizes:
        with torch.no_grad():
            model(IDS)  # under ZeRO-3 it leaves parameters gathered
        embed = model.resize_token_embeddings(size, mean_resizing=mean_resizing)
        assert embed is model.embed and (embed is None or not embed.weight.requires_grad)
    with torch.no_grad():
        logits = model(IDS).logits
    if folder is not None:
        model.save_pretrained(folder)
    whole = full_parameters(model, active_topology())
    return {name: tensor for name, tensor in whole if tensor is not None}, logits


@pytest.mark.parametrize(
    ("toy", "count", "layout", "sizes", "mean_resizing"),
    [
        ("llama", 2, (1, 1, 1), (103,), True),
        ("llama", 2, (1, 1, 2), (103,), False),
        ("tied", 2, (1, 1, 3), (103, 130), True),
        ("tied", 2, (1, 1, 3), (83,), True),
        ("moss", 2, (1, 2, 0), (103, 130), True),
        ("moss", 2, (1, 2, 0), (103,), False),
        ("tied", 4, (1, 4, 0), (83, 105), False),
        ("moss", 4, (1, 2, 3), (103, 83), True),
        ("moss", 2, (2, 1, 0), (103,), True),
        ("tied", 4, (2, 2, 0), (103, 83, 105), True),
        ("tied", 4, (2, 1, 1), (103,), False),
    ],
)
def test_every_layout_gets_the_same_values(ranks, toy, count, layout, sizes, mean_resizing):
    """Also where neither size is divided by the ranks, and where the last of four ranks holds padding alone."""
    [(expected, logits)] = ranks(1, resized, toy, (1, 1, 0), sizes, mean_resizing)
    results = ranks(count, resized, toy, layout, sizes, mean_resizing)
    found = {name: tensor for whole, _ in results for name, tensor in whole.items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    for _, ours in results:
        assert_close(ours, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", [(1, 2, 0), (2, 1, 0)])
def test_a_resized_model_is_saved_and_read_back(ranks, tmp_path, layout):
    [_, (_, logits)] = ranks(2, resized, "moss", layout, (103,), True, tmp_path)
    again = CollieModelForCausalLM.from_pretrained(tmp_path)
    assert again.embed.weight.shape == (103, 32) and again.head.bias.shape == (103,)
    with torch.no_grad():
        assert_close(again(IDS).logits, logits, atol=1e-5, rtol=0)


def test_the_configs_own_name_of_the_size_follows(tmp_path):
    model = CollieModelForCausalLM.from_pretrained(golden("chatglm2"))
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["padded_vocab_size"] == 300
    saved = load_file(tmp_path / "model.safetensors")
    assert saved["transformer.embedding.word_embeddings.weight"].shape[0] == 300
    assert CollieModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == 300


def training_goes_on(stage):
    """Losses of three steps after a resize, and the refusal after the engine was made."""
    model = make("tied", ds_config={"zero_optimization": {"stage": stage}})
    model.resize_token_embeddings(103)
    engine = engine_for(model, model.collie_config, torch.optim.SGD(model.parameters(), lr=0.5))
    labels = IDS.clone()
    labels[0, 3] = 102  # a new token is learnt
    losses = []
    model.train()
    for _ in range(3):
        loss = engine(labels, labels=labels, return_logits=False).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    with pytest.raises(RuntimeError, match="Resize before the optimizer and the Trainer are made"):
        model.resize_token_embeddings(110)
    return losses


def test_training_after_it_and_refusal_during_it(ranks):
    [alone] = ranks(1, training_goes_on, 0)
    assert alone[2] < alone[0]
    for stage in (1, 3):
        for losses in ranks(2, training_goes_on, stage):
            assert losses == pytest.approx(alone, rel=1e-4)


def test_a_gradient_that_waits_or_an_optimizer_in_the_backward_pass_is_refused():
    for prepare in (
        lambda model: model(IDS, labels=IDS).loss.backward(),
        lambda model: model.head.weight.register_post_accumulate_grad_hook(lambda parameter: None),
    ):
        model = make("llama")
        prepare(model)
        with pytest.raises(RuntimeError, match="an optimizer holds the model's present ones"):
            model.resize_token_embeddings(110)


def resize_in_vain(layout, failing):
    """One rank fails in making the new values; then none does."""
    pp, tp, stage = layout
    model = make("tied", pp_size=pp, tp_size=tp, ds_config={"zero_optimization": {"stage": stage}})
    rank, resized = active_topology().rank, _resize._resized
    with torch.no_grad():
        before = model(IDS).logits
    _resize._resized = no_room if rank == failing else resized
    with pytest.raises(CheckpointError) as caught:
        model.resize_token_embeddings(103)
    _resize._resized = resized
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before) and model.config.vocab_size == 97
    model.resize_token_embeddings(103)
    with torch.no_grad():
        assert model(IDS).logits.shape[-1] == 103
    return str(caught.value)


def no_room(*arguments):
    raise MemoryError("12 GB")


@pytest.mark.parametrize(
    ("count", "layout", "failing"), [(2, (1, 2, 0), 0), (2, (1, 1, 3), 0), (4, (2, 2, 0), 2), (4, (1, 2, 3), 3)]
)
def test_what_stops_one_rank_stops_all_and_leaves_the_model_as_it_was(ranks, count, layout, failing):
    [message] = set(ranks(count, resize_in_vain, layout, failing, timeout=30))
    assert message.endswith("could not be given 103 rows: MemoryError: 12 GB.")


def resize_beside_a_gradient():
    model = make("llama", pp_size=2)
    if active_topology().rank == 1:
        model.head.weight.grad = torch.zeros_like(model.head.weight)
    with pytest.raises(RuntimeError, match="an optimizer holds the model's present ones"):
        model.resize_token_embeddings(103)


def test_training_that_one_stage_alone_knows_of_is_refused_on_all(ranks):
    ranks(2, resize_beside_a_gradient, timeout=30)
