"""Round trips: transformers → here → transformers with equal logits, and from layout to layout bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)  # fmt: skip

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM
from collie.testing import golden, toy_config, toy_moss_config

pytest.importorskip("deepspeed")
IDS = torch.arange(2, 14).view(2, 6)
CODEGEN = CodeGenConfig(
    vocab_size=97, n_positions=64, n_ctx=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, tie_word_embeddings=False
)
FAMILIES = {
    "llama": toy_config(LlamaConfig),
    "llama tied": toy_config(LlamaConfig, tie_word_embeddings=True),
    "qwen2": toy_config(Qwen2Config),
    "qwen3": toy_config(Qwen3Config),
    "mistral": toy_config(MistralConfig, sliding_window=7),
    "codegen": CODEGEN,
}


@pytest.fixture(autouse=True)
def end_process_group():
    """Loading a model makes this process a world of one; tests that fork ranks need it to be none."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def as_torch_files(folder):
    """Replace safetensors by torch's files of like names, as older checkpoints have them."""

    def renamed(file):
        return file.replace("model", "pytorch_model").replace(".safetensors", ".bin")

    for file in sorted(folder.glob("*.safetensors")):
        torch.save(load_file(file), folder / renamed(file.name))
        file.unlink()
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {name: renamed(file) for name, file in content["weight_map"].items()}
    (folder / renamed(index.name)).write_text(json.dumps(content))
    index.unlink()


@pytest.mark.parametrize("files", ["safetensors", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_from_transformers_and_back(tmp_path, family, files):
    """Sharded both ways; what comes back has the same tensors, and transformers misses none and finds none too many."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    for parameter in theirs.parameters():  # biases start at zero, and a wrong one would not show
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    source = tensors(tmp_path / "theirs")
    if files == "torch":
        as_torch_files(tmp_path / "theirs")
    ours = CollieModelForCausalLM.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    saved = tensors(tmp_path / "ours")
    assert saved.keys() == source.keys() and all(torch.equal(saved[name], source[name]) for name in source)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert torch.equal(again.eval()(IDS).logits, expected)
        assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=0)


def first(model_config, folder):
    model = CollieModelForCausalLM.from_config(CollieConfig(model_config=model_config))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")


def passed_on(source, target, layout, dtype):
    """Load from one folder in a layout (pp, tp, ZeRO stage), and save to another."""
    config = CollieConfig.from_pretrained(str(source))
    config.pp_size, config.tp_size, stage = layout
    config.ds_config = {"zero_optimization": {"stage": stage}}
    model = CollieModelForCausalLM.from_pretrained(source, config=config, dtype=dtype)
    model.save_pretrained(target, max_shard_size="20KB")
    with torch.no_grad():
        return model.dtype, model(IDS).logits


@pytest.mark.parametrize("family", ["llama tied", "moss"])
def test_from_layout_to_layout(ranks, tmp_path, family):
    """The tensors, config and other files are at the end those that it began with.

    By way of tp 2, ZeRO-3 on three ranks, two stages of tp 2, tp 2 with ZeRO-3, and one process.
    """
    config = toy_moss_config() if family == "moss" else FAMILIES[family]
    ranks(1, first, config, tmp_path / "0")
    layouts = [(2, (1, 2, 0)), (3, (1, 1, 3)), (4, (2, 2, 0)), (4, (1, 2, 3)), (1, (1, 1, 0))]
    logits = []
    for number, (count, layout) in enumerate(layouts):
        results = ranks(count, passed_on, tmp_path / str(number), tmp_path / str(number + 1), layout, None)
        logits.append(results[0][1])
    source, last = tensors(tmp_path / "0"), tensors(tmp_path / "5")
    assert last.keys() == source.keys() and all(torch.equal(last[name], source[name]) for name in source)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "5" / name).read_bytes() == (tmp_path / "0" / name).read_bytes()
    for ours in logits:
        assert_close(ours, logits[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", [(1, 2, 0), (1, 1, 3), (2, 1, 0)])
def test_the_dtype_is_that_of_the_argument_or_the_configs_in_every_layout(ranks, tmp_path, layout):
    source = load_file(golden("llama3") / "model.safetensors")  # float32
    for dtype, asked in ((torch.bfloat16, "bfloat16"), (torch.float32, None)):
        folder = tmp_path / str(dtype)
        for got, _ in ranks(2, passed_on, golden("llama3"), folder, layout, asked):
            assert got is dtype
        saved = tensors(folder)
        assert saved.keys() == source.keys()
        assert all(torch.equal(saved[name], tensor.to(dtype)) for name, tensor in source.items())
        again = CollieModelForCausalLM.from_pretrained(folder)
        assert again.dtype is dtype  # which the folder's config.json says
        torch.distributed.destroy_process_group()
