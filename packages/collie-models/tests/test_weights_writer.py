"""Saving: transformers loads it with equal logits, nothing of the source is lost, and nothing is half written."""

import functools
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, CodeGenConfig, LlamaConfig

from collie.config import CollieConfig
from collie.interfaces import CheckpointError, ConfigError
from collie.models import CollieModelForCausalLM
from collie.models.weights import Description, _writer, byte_size, write_folder
from collie.models.weights import _shards as writer
from collie.parallel import Topology
from collie.testing import golden, toy_llama_config, toy_moss_config

IDS = torch.arange(2, 14).view(2, 6)


@pytest.fixture(autouse=True)
def end_process_group():
    """Loading a model makes this process a world of one; tests that fork ranks need it to be none."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def from_toy(model_config, **fields):
    return CollieModelForCausalLM.from_config(CollieConfig(model_config=model_config, **fields))


def toy_codegen_config():
    return CodeGenConfig(
        vocab_size=97, n_positions=64, n_ctx=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, tie_word_embeddings=False
    )


@pytest.mark.parametrize(
    "model_config",
    [
        toy_llama_config(),
        toy_llama_config(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=12),
        toy_codegen_config(),
    ],
    ids=["llama", "llama tied with biases", "codegen"],
)
def test_transformers_loads_what_is_saved(tmp_path, model_config):
    model = from_toy(model_config, initization_method="normal", initization_method_params={"std": 0.3})
    model.save_pretrained(tmp_path / "saved")
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert_close(model(IDS).logits, theirs.eval()(IDS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["moss_moon", "llama3"])
def test_a_checkpoint_comes_back_as_it_was_without_its_buffers(tmp_path, case):
    source = load_file(golden(case) / "model.safetensors")
    CollieModelForCausalLM.from_pretrained(golden(case)).save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == {name for name in source if "causal_mask" not in name}
    assert all(torch.equal(saved[name], source[name]) for name in saved)


def test_shards_hold_no_more_than_asked_and_are_indexed(tmp_path):
    model = from_toy(toy_llama_config())
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="16KB")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    whole, joined = load_file(tmp_path / "one" / "model.safetensors"), {}
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors" and len(shards) > 2
    for shard in shards:
        tensors = load_file(shard)
        assert sum(t.nbytes for t in tensors.values()) <= 16_000
        assert all(index["weight_map"][name] == shard.name for name in tensors)
        joined |= tensors
    assert joined.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())


def test_one_shard_at_a_time_is_held(tmp_path, monkeypatch):
    """While parameters stream past, what waits to be written never exceeds a shard and the next tensor."""
    model = from_toy(toy_llama_config(num_hidden_layers=6))
    written = []
    save = writer.save_file
    monkeypatch.setattr(writer, "save_file", lambda shard, *a, **k: written.append(len(seen)) or save(shard, *a, **k))
    seen = []

    def stream():
        for name, parameter in model.named_parameters():
            seen.append(name)
            yield name, parameter.detach()

    describe = functools.partial(Description, {}, None)
    write_folder(tmp_path / "out", stream(), model.names, model.config, describe, 16_000, Topology())
    assert len(written) > 5 and written[0] < 6 and written[-1] == len(seen)


def test_config_keeps_the_spelling_of_its_source(tmp_path):
    """Old files say rope_theta and torch_dtype; only what was changed is written anew."""
    config = CollieConfig.from_pretrained(str(golden("llama3")))
    config.model_config.rms_norm_eps = 1e-4
    model = CollieModelForCausalLM.from_pretrained(golden("llama3"), config=config, dtype="bfloat16")
    model.save_pretrained(tmp_path / "saved")
    source = json.loads((golden("llama3") / "config.json").read_text())
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved == source | {"rms_norm_eps": 1e-4, "torch_dtype": "bfloat16"}


def test_config_of_a_model_from_no_checkpoint_says_what_it_is(tmp_path):
    from_toy(toy_moss_config(architectures=None), dtype=None).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved["model_type"], saved["architectures"], saved["dtype"]) == ("moss", ["MossForCausalLM"], "float32")
    assert (saved["n_embd"], saved["rotary_dim"], saved["n_inner"]) == (32, 4, None)
    again = CollieModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.config.hidden_size == 32


def test_a_changed_rope_replaces_the_old_spelling(tmp_path):
    config = CollieConfig.from_pretrained(str(golden("llama3")))
    config.model_config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    CollieModelForCausalLM.from_pretrained(golden("llama3"), config=config).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "rope_theta" not in saved and "rope_scaling" not in saved
    assert LlamaConfig.from_pretrained(tmp_path / "saved").rope_parameters["rope_type"] == "linear"


def a_source(tmp_path):
    source = tmp_path / "source"
    from_toy(toy_llama_config()).save_pretrained(source)
    for name in ("tokenizer.json", "generation_config.json", "modeling_x.py", "chat_template.jinja", "LICENSE"):
        (source / name).write_text("{}")
    for name in ("README.md", "pytorch_model.bin", "consolidated.00.pth", ".gitattributes"):
        (source / name).write_text("no")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("rag")
    return source


def test_other_files_of_the_source_come_along_and_other_weights_do_not(tmp_path):
    source = a_source(tmp_path)
    CollieModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "saved")
    files = {str(p.relative_to(tmp_path / "saved")) for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert files == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "modeling_x.py",
        "chat_template.jinja",
        "LICENSE",
        "additional_chat_templates/rag.jinja",
    }
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_saving_over_a_model_replaces_its_weights_and_keeps_what_is_not_its_own(tmp_path):
    folder = tmp_path / "saved"
    from_toy(toy_llama_config(), seed=1).save_pretrained(folder, max_shard_size="16KB")
    (folder / "losses.json").write_text("[1]")
    second = from_toy(toy_llama_config(), seed=2)
    second.save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "losses.json"}
    with torch.no_grad():
        assert torch.equal(CollieModelForCausalLM.from_pretrained(folder)(IDS).logits, second(IDS).logits)


def test_saving_into_the_source_itself(tmp_path):
    source = a_source(tmp_path)
    model = CollieModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.norm.weight.mul_(2)
        expected = model(IDS).logits
    model.save_pretrained(source)
    with torch.no_grad():
        assert torch.equal(CollieModelForCausalLM.from_pretrained(source)(IDS).logits, expected)
    assert (source / "tokenizer.json").is_file() and not (source / "pytorch_model.bin").exists()


def test_a_failed_save_leaves_the_old_model_whole(tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    model = from_toy(toy_llama_config())
    model.save_pretrained(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "save_file", full)
    with torch.no_grad():
        model.norm.weight.mul_(2)
    with pytest.raises(CheckpointError, match=r"could not be saved to .*saved: .*No space left"):
        model.save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("moved", [0, 1, 3])
@pytest.mark.parametrize("size", ["16KB", "5GB"])
def test_a_save_that_fails_while_files_are_moved_leaves_no_model_rather_than_a_mixed_one(
    tmp_path, monkeypatch, moved, size
):
    """Into a folder of several shards: `moved` files have come into place when the file system refuses the next."""
    folder = tmp_path / "saved"
    source = a_source(tmp_path)
    model = CollieModelForCausalLM.from_pretrained(source)
    model.save_pretrained(folder, max_shard_size="16KB")
    replace, done = os.replace, []

    def refuse(old, new):
        if len(done) == moved:
            raise OSError(5, "Input/output error")
        done.append(new)
        replace(old, new)

    monkeypatch.setattr(_writer.os, "replace", refuse)
    with pytest.raises(CheckpointError, match=r"could not be saved to .*saved: .*Input/output error"):
        model.save_pretrained(folder, max_shard_size=size)
    monkeypatch.undo()
    assert len(done) == moved and not (folder / "config.json").exists() and not list(folder.glob("*.index.json"))
    assert {path.name for path in tmp_path.iterdir()} == {"saved", "source"}
    with pytest.raises((ConfigError, CheckpointError), match=r"config\.json"):
        CollieModelForCausalLM.from_pretrained(folder)
    if not (folder / "model.safetensors").exists():  # which would be the whole of the new weights
        with pytest.raises(CheckpointError):
            model.load_weights(folder)
    model.save_pretrained(folder, max_shard_size=size)
    with torch.no_grad():
        assert torch.equal(CollieModelForCausalLM.from_pretrained(folder)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 GiB", 3 * 2**29), ("16kb", 16_000), (512, 512), ("100", 100)]
)
def test_sizes(text, size):
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "5 GBs", "-1GB", "0", "many"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is not a size"):
        byte_size(text)
