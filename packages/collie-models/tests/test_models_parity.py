"""Families against stored numbers of their references, and against transformers on toy sizes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    CodeGenConfig,
    CodeGenForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM
from collie.module import GPTLMLoss
from collie.testing import golden, toy_config, toy_llama_config

CASES = [
    *("llama2", "llama3", "qwen2", "qwen3", "mistral", "mistral_swa"),
    *("moss_moon", "codegen", "moss7b_via_llama", "internlm", "internlm_nobias", "internlm2"),
    *("chatglm2", "chatglm", "chatglm_shallow"),
]


@pytest.fixture(autouse=True)
def end_process_group():
    """Loading a model makes this process a world of one; tests that fork ranks need it to be none."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def load(case, use_flash):
    folder = golden(case)
    config = CollieConfig.from_pretrained(str(folder))
    config.use_flash, config.checkpointing = use_flash, False
    model = CollieModelForCausalLM.from_pretrained(folder, config=config)
    return model, load_file(folder / "golden.safetensors"), json.loads((folder / "meta.json").read_text())


@pytest.mark.parametrize("use_flash", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(case, use_flash):
    model, stored, _ = load(case, use_flash)
    kept = stored["attention_mask"].bool()
    with torch.no_grad():
        logits = model(stored["input_ids"], attention_mask=stored["attention_mask"]).logits
        assert_close(logits[kept], stored["logits"][kept], atol=1e-4, rtol=0)
        assert logits.isfinite().all()
        assert_close(model(stored["nopad_input_ids"]).logits, stored["nopad_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("return_logits", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_equal_the_reference(case, return_logits):
    model, stored, meta = load(case, use_flash=True)
    out = model.train()(
        stored["input_ids"], stored["attention_mask"], labels=stored["labels"], return_logits=return_logits
    )
    assert_close(out.loss.item(), meta["loss"], atol=1e-4, rtol=0)
    assert (out.logits is not None) == return_logits
    out.loss.backward()
    for name, parameter in model.named_parameters():
        source = model.names.to_checkpoint(name)[0]
        assert parameter.grad.norm().item() == pytest.approx(meta["grad_norms"][source], rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_the_reference(case, use_cache):
    model, stored, _ = load(case, use_flash=True)
    prompt, greedy = stored["prompt_ids"], stored["greedy_ids"]
    new = model.generate(
        prompt, max_new_tokens=greedy.shape[1], do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(new[:, prompt.shape[1] :], greedy)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_is_read_back_with_equal_logits(case, tmp_path):
    """Under the names and in the row order of the checkpoint that it came from."""
    model, stored, _ = load(case, use_flash=True)
    model.save_pretrained(tmp_path)
    source, saved = (load_file(folder / "model.safetensors") for folder in (golden(case), tmp_path))
    assert all(torch.equal(tensor, source[name]) for name, tensor in saved.items())
    left_out = {name for name in source if name not in saved and not model.names.ignores(name)}
    assert left_out <= ({"lm_head.weight"} if model.head.weight is model.embed.weight else set())
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((golden(case) / "config.json").read_text())
    again = CollieModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(model)
    with torch.no_grad():
        assert torch.equal(again(stored["nopad_input_ids"]).logits, model(stored["nopad_input_ids"]).logits)


@pytest.mark.parametrize("case", CASES)
def test_a_model_from_no_checkpoint_is_read_back(case, tmp_path):
    """Its config.json is our own description, with the family's defaults in it."""
    config = CollieConfig.from_pretrained(str(golden(case)))
    config.source, config.initization_method = None, "normal"
    config.initization_method_params = {"std": 0.2}
    model = CollieModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    again = CollieModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(model)
    ids = load_file(golden(case) / "golden.safetensors")["nopad_input_ids"]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
}


@pytest.mark.parametrize(
    "reference",
    [
        lambda: LlamaForCausalLM(toy_llama_config()),
        lambda: LlamaForCausalLM(toy_llama_config(tie_word_embeddings=True, num_key_value_heads=1)),
        lambda: LlamaForCausalLM(toy_llama_config(attention_bias=True, mlp_bias=True, head_dim=12)),
        lambda: LlamaForCausalLM(toy_llama_config(rope_parameters=LINEAR)),
        lambda: LlamaForCausalLM(toy_llama_config(rope_parameters=DYNAMIC, max_position_embeddings=12)),
        lambda: LlamaForCausalLM(toy_llama_config(rope_parameters=YARN)),
        lambda: LlamaForCausalLM(toy_llama_config(rope_parameters=LLAMA3)),
        lambda: Qwen2ForCausalLM(toy_config(Qwen2Config)),
        lambda: Qwen2ForCausalLM(
            toy_config(Qwen2Config, num_hidden_layers=3, use_sliding_window=True, sliding_window=5, max_window_layers=1)
        ),
        lambda: Qwen3ForCausalLM(toy_config(Qwen3Config, head_dim=12, attention_bias=True, tie_word_embeddings=True)),
        lambda: MistralForCausalLM(toy_config(MistralConfig, sliding_window=None)),
        lambda: MistralForCausalLM(toy_config(MistralConfig, sliding_window=7)),
        lambda: CodeGenForCausalLM(
            CodeGenConfig(
                vocab_size=97, n_positions=64, n_ctx=64, n_embd=48, n_layer=2, n_head=4, n_inner=40, rotary_dim=6
            )
        ),
    ],
    ids=[
        *("llama", "tied, one kv head", "biases, wide heads", "linear rope"),
        *("dynamic rope, beyond the original length", "yarn rope", "llama3 rope"),
        *("qwen2", "qwen2, windows in some layers", "qwen3, biases, wide heads, tied", "mistral", "mistral, window"),
        "codegen",
    ],
)
def test_logits_and_gradients_equal_those_of_transformers(reference, tmp_path):
    torch.manual_seed(0)
    theirs = reference()
    for parameter in theirs.parameters():  # biases start at zero, and a wrong one would not show
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    ours = CollieModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(3, 97, (3, 20))
    keep = torch.ones_like(ids)
    keep[0, :6] = keep[1, 15:] = 0
    labels = ids.masked_fill(keep == 0, -100)
    labels[0, 6] = -100  # predicted from a pad
    mine, other = ours.train()(ids, keep, labels=labels), theirs.train()(ids, attention_mask=keep)
    assert_close(mine.logits[keep.bool()], other.logits[keep.bool()], atol=1e-4, rtol=0)
    mine.loss.backward()
    GPTLMLoss()(other.logits, labels).backward()
    reference_grads = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        source, entry = ours.names.to_checkpoint(name)
        grad = reference_grads[source]
        grad = torch.cat([grad[a:b] for a, b in entry.rows(ours.config, grad.shape[0])])
        assert_close(parameter.grad, grad, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
