"""Rows packed into one sequence: loss and gradients of the rows apart, in every family and by every kernel."""

from functools import partial

import pytest
import torch
from packs import apart, gradients_of, packed, toy_rows
from torch import nn
from torch.testing import assert_close
from transformers import LlamaForCausalLM, MistralConfig

from collie.config import CollieConfig
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.module import GPTLMLoss, Mask, Packed, attention_backend, model_inputs, targets, token_loss, widened
from collie.testing import golden, toy_config, toy_llama_config

FAMILIES = ("llama3", "qwen2", "qwen3", "mistral_swa", "moss7b_via_llama", "internlm", "internlm2", "chatglm2")
FAMILIES += ("moss_moon", "codegen")
ROPES = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 8},
}


@pytest.fixture(autouse=True)
def one_process():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def assert_same_as_apart(model, batch, rows):
    """Loss to 1e-6 and gradients to 1e-5, of means over all targets."""
    loss, grads = gradients_of(model, [batch])
    expected, theirs = gradients_of(model, apart(rows))
    assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    assert grads.keys() == theirs.keys()
    for name, grad in grads.items():
        assert_close(grad, theirs[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("use_flash", [True, False])
@pytest.mark.parametrize("case", FAMILIES)
def test_a_family_packed_equals_its_rows_apart(case, use_flash):
    """Rows of 1 to 11 tokens in packs of 16, of which the last has padding."""
    config = CollieConfig.from_pretrained(str(golden(case)))
    config.use_flash, config.checkpointing = use_flash, False
    model = CollieModelForCausalLM.from_pretrained(golden(case), config=config).train()
    rows = toy_rows(model.config.vocab_size)
    assert_same_as_apart(model, packed(rows, 16), rows)


def toy(config, **fields):
    settings = CollieConfig(model_config=config, checkpointing=False)
    for name, value in fields.items():
        setattr(settings, name, value)
    return CollieModelForCausalLM.from_config(settings).train()


@pytest.mark.parametrize("kind", ROPES)
def test_a_scaled_rotation_takes_each_row_for_itself(kind):
    """Rows shorter and longer than the original context of 8; the pack is longer than all."""
    model = toy(toy_llama_config(max_position_embeddings=8, rope_parameters=ROPES[kind] | {"rope_theta": 10000.0}))
    rows = toy_rows(97)
    assert_same_as_apart(model, packed(rows, 24), rows)


@pytest.mark.parametrize("backend", ["flash", "math"])
def test_a_window_is_within_a_row_and_a_layer_may_be_run_again(backend):
    model = toy(toy_config(MistralConfig, sliding_window=3), checkpointing=True)
    rows = toy_rows(97)
    with attention_backend(backend):
        assert_same_as_apart(model, packed(rows, 16), rows)


def test_padding_on_the_left_and_rows_with_padding_of_their_own_change_nothing():
    model = toy(toy_llama_config())
    rows = toy_rows(97)
    assert_same_as_apart(model, packed(rows, 16, padding_left=True), rows)
    masked = [{**row, "attention_mask": [0, *row["attention_mask"][1:]]} for row in rows if len(row["input_ids"]) > 3]
    assert_same_as_apart(model, packed(masked, 16), masked)


def test_positions_and_labels_follow_from_where_rows_begin():
    """A batch without positions, and with labels of all tokens: of a row's first one nothing is asked."""
    model = toy(toy_llama_config())
    rows = [{**row, "labels": row["input_ids"]} for row in toy_rows(97)]
    batch = packed(rows, 16)
    logits, loss = model(**{**batch, "labels": None}).logits, model(**batch).loss
    bare = {key: batch[key] for key in ("input_ids", "cu_seqlens", "attention_mask")}
    tokens = batch["attention_mask"].bool()
    assert torch.equal(model(**bare).logits[tokens], logits[tokens])
    assert_close(model(**bare, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss, loss)
    assert torch.equal(targets(bare), batch["labels"])


def test_what_a_row_sees_does_not_depend_on_its_neighbours():
    """Bitwise: the same pack with another row in it."""
    model = toy(toy_llama_config()).eval()
    batch = packed(toy_rows(97), 16)
    first, second, end = batch["cu_seqlens"][:3].tolist()
    assert (first, end) == (0, 16)
    with torch.no_grad():
        before = model(**{**batch, "labels": None}).logits
        batch["input_ids"][0, first:second] = 11
        after = model(**{**batch, "labels": None}).logits
    assert not torch.equal(before[0, first:second], after[0, first:second])
    assert torch.equal(before[0, second:], after[0, second:]) and torch.equal(before[1:], after[1:])


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_family_whose_visibility_is_in_the_tokens_refuses():
    model = CollieModelForCausalLM.from_pretrained(golden("chatglm_shallow"))
    with pytest.raises(ConfigError, match="ChatGLMForCausalLM finds positions and what may be seen in a row's tokens"):
        model(**packed(toy_rows(model.config.vocab_size), 16))


def test_caches_and_generation_refuse():
    model = toy(toy_llama_config())
    batch = packed(toy_rows(97), 16)
    with pytest.raises(ValueError, match="a cache keeps one row a sequence"):
        model(**batch, use_cache=True)
    with pytest.raises(ValueError, match="generate goes on with one row a sequence"):
        model.generate(batch["input_ids"], cu_seqlens=batch["cu_seqlens"])


class Own(nn.Module):
    def forward(self, input_ids, attention_mask):
        raise NotImplementedError


def test_models_that_do_not_say_that_they_keep_rows_apart_refuse():
    """transformers' take any argument, and would let rows see each other."""
    batch = packed(toy_rows(97), 16)
    theirs = LlamaForCausalLM(toy_llama_config())
    for model, name in ((theirs, "LlamaForCausalLM"), (Own(), "Own")):
        for call in (partial(model_inputs, model, batch), partial(token_loss, model, batch, GPTLMLoss())):
            with pytest.raises(ConfigError, match=rf"{name}\.forward has no such parameter: rows would see each other"):
                call()


@pytest.mark.parametrize(
    "starts",
    [[0, 3, 16], [1, 3, 8, 16], [0, 3, 8, 8, 16], [0, 3, 8], [0, 3, 8, 24], [0, 8, 3, 16], [0, 8.0, 16], [[0, 8, 16]]],
    ids=str,
)
def test_what_are_no_rows_of_the_batch_is_refused(starts):
    with pytest.raises(ValueError, match="cu_seqlens"):
        Packed.build(torch.tensor(starts), 2, 8)


def test_a_learnt_prompt_is_refused():
    """PEFT puts embeddings before each pack, and cu_seqlens does not know of them."""
    peft = pytest.importorskip("peft")
    asked = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = toy(toy_llama_config(), peft_config=asked)
    with pytest.raises(ValueError, match="Prompts that are learnt lengthen packs"):
        token_loss(model, packed(toy_rows(97), 16), GPTLMLoss())


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "wider"), [((2, 8), (2, 8)), ((2, 8), (2, 11)), ((2, 8), (4, 8)), ((2, 8), (3, 9))])
def test_widened_places_are_those_of_the_padded_batch(shape, wider):
    """Each row keeps its positions; what is added to a pack, and each pack that is added, is a row."""
    starts = torch.tensor([0, 3, 8, 13, 16], dtype=torch.int32)
    numbers = torch.nn.functional.pad(
        Packed.build(starts, *shape).row_BS, (0, wider[1] - shape[1], 0, wider[0] - shape[0]), value=-1
    )
    found = Packed.build(widened(starts, shape, wider), *wider)
    assert found.cu_seqlens.dtype == torch.int32
    rows = [numbers.flatten()[a:b] for a, b in zip(found.cu_seqlens, found.cu_seqlens[1:], strict=False)]
    assert all(len(set(row.tolist())) == 1 for row in rows)
    assert sorted(row[0].item() for row in rows if row[0] >= 0) == [0, 1, 2, 3]
    added = (wider[1] > shape[1]) * shape[0] + wider[0] - shape[0]
    assert len(rows) == 4 + added


def test_a_mask_of_packs_asks_for_no_dense_mask_where_a_kernel_reads_rows():
    """Padding that is a row of its own, on either side, hides nothing from another."""
    packs = Packed.build(torch.tensor([0, 3, 8, 15, 16]), 2, 8)
    keep = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0]])
    assert Mask.build(keep, 8, 0, torch.device("cpu"), packed=packs).needs == {"causal", "packed"}
    assert Mask.build(1 - keep, 8, 0, torch.device("cpu"), packed=packs).needs == {"causal", "packed"}
    mask = Mask.build(None, 8, 0, torch.device("cpu"), packed=packs)
    assert mask.needs == {"causal", "packed"}
    assert mask.rows.index_U is None and mask.rows.longest == 7
    assert mask.within(4, 8).needs == {"causal", "packed", "window"}
