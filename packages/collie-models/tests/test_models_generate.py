"""Generation through transformers: caches, padding, beams, stopping, and what a forward accepts."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaForCausalLM, MistralConfig, Qwen2Config, Qwen3Config, StaticCache

from collie.config import CollieConfig
from collie.models import CausalLMOutput, CollieModelForCausalLM
from collie.testing import toy_config, toy_llama_config, toy_moss_config

FAMILIES = {
    "llama": toy_llama_config,
    "moss": toy_moss_config,
    "mistral": lambda: toy_config(MistralConfig, sliding_window=4),
    "qwen2": lambda: toy_config(Qwen2Config, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "qwen3": lambda: toy_config(Qwen3Config, head_dim=12),
}
IDS = torch.tensor([[5, 9, 13, 40, 41, 7, 22, 81]])


@pytest.fixture(autouse=True)
def end_process_group():
    """Loading a model makes this process a world of one; tests that fork ranks need it to be none."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(params=FAMILIES)
def model(request):
    wide = {
        "initization_method": "normal",
        "initization_method_params": {"std": 0.4},
    }  # so that tokens are not all alike
    return CollieModelForCausalLM.from_config(CollieConfig(model_config=FAMILIES[request.param](), **wide))


def greedy(model, ids, **arguments):
    arguments = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | arguments
    return model.generate(ids, **arguments)[:, ids.shape[1] :]


def test_cache_or_not_the_tokens_are_the_same_and_differ_among_themselves(model):
    with_cache, without = (greedy(model, IDS, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without)
    assert len(set(with_cache[0].tolist())) > 2


@pytest.mark.parametrize("use_cache", [True, False])
def test_left_padding_changes_nothing(model, use_cache):
    short = IDS[:, 3:]
    batch = torch.cat([IDS, torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1)])
    keep = torch.ones_like(batch)
    keep[1, :3] = 0
    both = greedy(model, batch, attention_mask=keep, use_cache=use_cache)
    assert torch.equal(both[:1], greedy(model, IDS))
    assert torch.equal(both[1:], greedy(model, short))


def test_a_forward_in_pieces_equals_one(model):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        whole = model(IDS).logits
        pieces = [model(part, past_key_values=cache).logits for part in IDS.split([3, 1, 4], 1)]
    assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=0)
    assert cache.get_seq_length() == 8


def test_a_cache_that_knows_of_no_window_gives_the_same(model):
    cache = DynamicCache()
    with torch.no_grad():
        pieces = [model(part, past_key_values=cache).logits for part in IDS.split([6, 1, 1], 1)]
        assert_close(torch.cat(pieces, 1), model(IDS).logits, atol=1e-5, rtol=0)


class Shapes(TorchDispatchMode):
    """Notes what every operation returns: (its name, the shape)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.seen.append((function.overloadpacket._qualified_op_name, tuple(out.shape)))
        return out


def square(noted):
    """Whether it is a row of keys for each of many queries; rows of a mask may be aligned to 8."""
    queries, keys = noted[1][-2:] if len(noted[1]) > 1 else (0, 0)
    return 39 <= queries <= keys < queries + 8


@pytest.mark.parametrize("padding", [0, 3])
def test_a_step_with_a_cache_makes_no_rotary_table_and_no_square_mask(model, padding):
    """After the prompt: angles of one position at the most, and a mask of one query."""
    ids = torch.arange(2 * 39).view(2, 39) % 90 + 3
    keep = torch.ones_like(ids)
    keep[0, :padding] = 0
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), Shapes() as prompt:
        model(ids, keep, past_key_values=cache)
    with Shapes() as steps:
        greedy(model, torch.cat((ids, ids[:, :1]), 1), attention_mask=torch.cat((keep, keep[:, :1] | 1), 1),
               past_key_values=cache, max_new_tokens=5)  # fmt: skip
    window = any(layer.attention.window for layer in model.layers.values())
    assert any(map(square, prompt.seen)) == (padding > 0 or window)
    assert not any(map(square, steps.seen))
    turned = [shape for name, shape in steps.seen if name in ("aten::cos", "aten::sin")]
    assert all(shape[-2] == 1 for shape in turned)


def test_positions_of_the_user_are_used(model):
    """Rotary is relative: shifting all positions changes nothing, stretching them does."""
    with torch.no_grad():
        plain, shifted, stretched = (
            model(IDS, position_ids=p).logits for p in (None, torch.arange(30, 38)[None], 2 * torch.arange(8)[None])
        )
    assert_close(shifted, plain, atol=1e-4, rtol=0)
    assert (stretched - plain).abs().max() > 1e-2


def test_beams_equal_those_of_transformers(tmp_path):
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(toy_llama_config()).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    ours = CollieModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(*(greedy(model, IDS, num_beams=3, num_return_sequences=2) for model in (ours, theirs)))


def test_sampling_is_reproducible_and_stops_at_the_end_token(model):
    first, again = [], []
    for drawn in (first, again):
        torch.manual_seed(5)
        drawn.append(greedy(model, IDS, do_sample=True, top_k=20))
    assert torch.equal(first[0], again[0])
    free = greedy(model, IDS)[0].tolist()
    assert greedy(model, IDS, eos_token_id=free[2])[0].tolist() == free[: free.index(free[2]) + 1]


def test_generating_in_training_mode_leaves_training_able(model):
    """generate runs without gradients; rotary tables and caches made there are no obstacle to a backward pass."""
    model.train()
    with torch.inference_mode():
        greedy(model, IDS)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_output_is_read_by_name_by_key_and_by_place(model):
    with torch.no_grad():
        out = model(IDS, labels=IDS, use_cache=True)
    assert isinstance(out, CausalLMOutput)
    assert out.loss is out["loss"] is out[0] and out.logits is out[1]
    assert out.past_key_values.get_seq_length() == 8
    with torch.no_grad():
        plain = model(IDS)
        last = model(IDS, logits_to_keep=1).logits
    assert plain.loss is None and plain.past_key_values is None
    assert_close(last, plain.logits[:, -1:], atol=1e-6, rtol=0)


def test_embeddings_in_place_of_ids(model):
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=model.get_input_embedding()(IDS)).logits, model(IDS).logits)


def test_arguments_that_contradict_each_other_are_refused(model):
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="return_logits=False without labels"):
        model(IDS, return_logits=False)
    with pytest.raises(ValueError, match="not supported"):
        model(IDS, output_hidden_states=True)
    with pytest.raises(ValueError, match="StaticCache is not supported"):
        model(IDS, past_key_values=StaticCache(config=model.config, max_cache_len=16))
    with pytest.raises(ValueError, match=r"need \[batch, 8\]"):
        model(IDS, attention_mask=torch.ones(1, 9))
