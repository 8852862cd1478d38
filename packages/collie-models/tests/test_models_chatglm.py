"""ChatGLM: contexts that it finds itself, in forwards of any size and in generation."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import DynamicCache

from collie.models import ChatGLMForCausalLM
from collie.testing import golden

MASK, GMASK, BOS = 250, 251, 254
# an answer at the context's end; an answer inside of it, which itself has both special tokens
ROWS = [[9, 30, 31, GMASK, BOS, 40, 41, 42], [9, MASK, 77, BOS, 50, GMASK, 52, MASK]]


@pytest.fixture(autouse=True)
def end_process_group():
    """Loading a model makes this process a world of one; tests that fork ranks need it to be none."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def model():
    return ChatGLMForCausalLM.from_pretrained(golden("chatglm_shallow"))


def logits(model, rows, **arguments):
    with torch.no_grad():
        return model(torch.tensor(rows), **arguments).logits


def test_the_channels_that_it_finds_are_those_of_the_reference(model, monkeypatch):
    stored = load_file(golden("chatglm_shallow") / "golden.safetensors")
    found = []
    at = model.rope.at
    monkeypatch.setattr(model.rope, "at", lambda positions: found.append(positions) or at(positions))
    with torch.no_grad():
        ours = model(stored["input_ids"], stored["attention_mask"]).logits
        given = model(stored["input_ids"], stored["attention_mask"], position_ids=stored["position_ids"]).logits
    assert torch.equal(found[0], stored["position_ids"])
    assert torch.equal(ours, given)


def test_channels_that_are_given_are_used(model):
    place = torch.stack([torch.arange(8), torch.zeros(8, dtype=torch.long)]).expand(2, 2, 8)
    assert (logits(model, ROWS, position_ids=place) - logits(model, ROWS)).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"position_ids have shape \(1, 8\); need \[batch, 2, 8\]"):
        logits(model, ROWS, position_ids=torch.arange(8)[None])


def test_every_token_sees_the_context_and_no_later_answer(model):
    plain = logits(model, ROWS)
    context, answer = copy.deepcopy(ROWS), copy.deepcopy(ROWS)
    context[0][2], answer[0][6] = 99, 99
    assert (logits(model, context)[0, 0] - plain[0, 0]).abs().max() > 1e-3
    assert torch.equal(logits(model, answer)[0, :6], plain[0, :6])


def test_a_row_without_bos_is_plain_text(model):
    """Else it would be trained to copy what it sees."""
    text = [[9, 30, 31, 32, 33, 34]]
    longer = [[*text[0][:5], 99]]
    assert torch.equal(logits(model, text)[:, :5], logits(model, longer)[:, :5])


@pytest.mark.parametrize("sizes", [[5, 1, 1, 1], [6, 2], [8]])
def test_an_answer_in_pieces_equals_one_forward(model, sizes):
    cache = DynamicCache()
    parts = torch.tensor(ROWS).split(sizes, dim=1)
    pieces = [logits(model, part.tolist(), past_key_values=cache) for part in parts]
    assert_close(torch.cat(pieces, 1), logits(model, ROWS), atol=1e-5, rtol=0)


def test_a_bos_that_comes_later_ends_the_context(model):
    """The context before it was read as plain text; positions are those of one forward."""
    cache = DynamicCache()
    for part in torch.tensor(ROWS).split([3, 5], dim=1):
        logits(model, part.tolist(), past_key_values=cache)
    context = model.contexts.get(cache)
    assert (context.bos_B.tolist(), context.prefix_B.tolist()) == ([4, 3], [4, 3])
    assert context.positions(3, 6).tolist() == [[[3, 3, 3], [0, 1, 2]], [[1, 1, 1], [1, 2, 3]]]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("beams", [1, 2])
def test_left_padded_rows_generate_what_they_generate_alone(model, use_cache, beams):
    arguments = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 3, "num_beams": beams}
    short = ROWS[1][:4]
    batch = torch.tensor([ROWS[0][:6], [3, 3, *short]])
    keep = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    both = model.generate(batch, attention_mask=keep, use_cache=use_cache, **arguments)[:, 6:]
    for row, prompt in zip(both, (ROWS[0][:6], short), strict=True):
        alone = model.generate(torch.tensor([prompt]), use_cache=not use_cache, **arguments)[0, len(prompt) :]
        assert row.tolist() == alone.tolist()


def test_a_cache_of_unknown_rows_needs_positions(model):
    cache = DynamicCache()
    logits(model, ROWS, past_key_values=cache)
    other = copy.deepcopy(model)  # which has seen no cache
    with pytest.raises(ValueError, match="were not filled by this model"):
        logits(other, [[60], [61]], past_key_values=copy.deepcopy(cache))
    place = torch.tensor([[[3], [5]], [[1], [6]]])
    given = logits(other, [[60], [61]], past_key_values=copy.deepcopy(cache), position_ids=place)
    assert_close(given, logits(model, [[60], [61]], past_key_values=cache), atol=1e-6, rtol=0)


def test_contexts_are_forgotten_with_their_cache(model):
    cache = DynamicCache()
    logits(model, ROWS, past_key_values=cache)
    assert model.contexts.get(cache) is not None
    del cache
    assert len(model.contexts._of) == 0


def test_embeddings_in_place_of_tokens_are_refused(model):
    with pytest.raises(ValueError, match="Give input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 64))
