"""Reading checkpoints: safetensors and torch files, whole and in shards; only what is asked; every way to be wrong."""

import itertools
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import LlamaForCausalLM as Reference

from collie.config import CollieConfig
from collie.interfaces import CheckpointError, ConfigError
from collie.models import CollieModelForCausalLM
from collie.models._steps import build, read_from
from collie.models.weights import local_folder, open_reader
from collie.testing import golden, toy_llama_config


@pytest.fixture(autouse=True)
def end_process_group():
    """Loading a model makes this process a world of one; tests that fork ranks need it to be none."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return Reference(toy_llama_config()).eval()


@pytest.fixture
def folder(tmp_path, reference):
    reference.save_pretrained(tmp_path)
    return tmp_path


def meta_model(folder):
    config = CollieConfig.from_pretrained(str(folder))
    from collie.models import find_family

    return build(find_family(config.model_config), config)


def as_torch_files(folder, shards):
    """Replace the safetensors by torch files, with an index where there are several."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(tensors.items())[number::shards])
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("layout", ["safetensors", "safetensors shards", "torch", "torch shards"])
def test_every_layout_of_files_gives_the_same_logits(folder, reference, layout):
    if layout == "safetensors shards":
        (folder / "model.safetensors").unlink()
        reference.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    elif layout != "safetensors":
        as_torch_files(folder, 3 if "shards" in layout else 1)
    ids = torch.arange(2, 14).view(2, 6)
    with torch.no_grad():
        ours = CollieModelForCausalLM.from_pretrained(folder)(ids).logits
        assert_close(ours, reference(ids).logits, atol=1e-5, rtol=0)


def test_torch_files_of_before_zip_are_read(folder, reference):
    """What torch wrote before 1.6, as the checkpoints of 2019 and 2020 still are: it cannot be mapped into memory."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    ids = torch.arange(2, 14).view(2, 6)
    with torch.no_grad():
        assert_close(CollieModelForCausalLM.from_pretrained(folder)(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("case", ["moss_moon", "llama3"])
def test_slices_join_to_the_whole(case):
    folder = golden(case)
    model = meta_model(folder)
    fill = read_from(folder, model, torch.float32)
    for name, parameter in model.named_parameters():
        whole = fill(name, parameter.shape, 0, parameter.numel())
        assert whole.shape == (parameter.numel(),)
        cuts = [0, 1, parameter.numel() // 3, parameter.numel() // 2 + 1, parameter.numel()]
        parts = [fill(name, parameter.shape, a, b) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole), name


def test_a_slice_reads_the_rows_it_lies_in_and_no_others(monkeypatch):
    """ZeRO-3's slice of a fused weight: its elements are in 9 of 192 rows, which lie in two of the file's blocks."""
    folder = golden("moss_moon")
    model = meta_model(folder)
    fill = read_from(folder, model, torch.bfloat16)
    asked = []
    rows = type(open_reader(folder)).rows
    monkeypatch.setattr(type(open_reader(folder)), "rows", lambda self, *a, **k: asked.append(a) or rows(self, *a, **k))
    part = fill("layers.0.attention.qkv.weight", torch.Size([192, 64]), 12 * 64 + 5, 20 * 64 + 7)
    assert asked == [("transformer.h.0.attn.qkv_proj.weight", [(12, 16), (48, 53)], None)]
    file = load_file(folder / "model.safetensors")["transformer.h.0.attn.qkv_proj.weight"]
    assert torch.equal(part, torch.cat([file[12:16], file[48:53]]).flatten()[5:-57].bfloat16())


@pytest.mark.parametrize("as_torch", [False, True])
def test_columns_are_read_as_a_tensor_of_their_own(folder, as_torch):
    """A row-parallel weight's part: elements [start, stop) count among the asked columns alone."""
    file = load_file(folder / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    if as_torch:
        as_torch_files(folder, 1)
    fill = read_from(folder, meta_model(folder), torch.float32)
    part = fill("layers.0.mlp.down.weight", file.shape, 7, 60, columns=(16, 28))
    assert torch.equal(part, file[:, 16:28].flatten()[7:60])


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_tensor_is_named_before_anything_is_made(folder, monkeypatch):
    edit(folder, lambda tensors: [tensors.pop(f"model.layers.{i}.mlp.up_proj.weight") for i in (0, 1)])
    monkeypatch.setattr("collie.models.base.give_weights", lambda *a: pytest.fail("made before it was checked"))
    with pytest.raises(
        CheckpointError, match=r"'model.layers.0.mlp.up_proj.weight' \(our layers.0.mlp.up.weight, .*nor 1 others"
    ):
        CollieModelForCausalLM.from_pretrained(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes_and_its_file(folder, monkeypatch):
    edit(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    monkeypatch.setattr("collie.models.base.give_weights", lambda *a: pytest.fail("made before it was checked"))
    with pytest.raises(
        CheckpointError, match=r"'model.norm.weight' in .*model.safetensors has shape \(31,\), .* asks for \(32,\)"
    ):
        CollieModelForCausalLM.from_pretrained(folder)


def test_unused_tensors_warn_once_and_buffers_do_not(folder):
    inverse_frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda tensors: tensors.update({inverse_frequencies: torch.ones(4)}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_from(folder, meta_model(folder), torch.float32)
    edit(folder, lambda tensors: tensors.update({"score.weight": torch.ones(4)}))
    with pytest.warns(UserWarning, match=r"1 tensors that the model does not use: score.weight\.") as caught:
        read_from(folder, meta_model(folder), torch.float32)
    assert len(caught) == 1


def test_a_tied_head_may_be_in_the_file_or_not(tmp_path):
    torch.manual_seed(0)
    Reference(toy_llama_config(tie_word_embeddings=True)).save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("lm_head.weight", None))
    model = CollieModelForCausalLM.from_pretrained(tmp_path)
    assert model.head.weight is model.embed.weight
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_from(tmp_path, model, torch.float32)


def test_an_untied_head_must_be_in_the_file(folder):
    edit(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"no tensor 'lm_head.weight'"):
        CollieModelForCausalLM.from_pretrained(folder)


def test_damaged_and_absent_files_are_named(folder, reference):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a whole safetensors file"):
        CollieModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights: looked for model.safetensors and pytorch_model.bin"):
        CollieModelForCausalLM.from_pretrained(folder)
    reference.save_pretrained(folder, max_shard_size="20KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=rf"names {lost.name}, which .* does not hold"):
        CollieModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is not an index of weights"):
        CollieModelForCausalLM.from_pretrained(folder)


class _Attack:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_a_pickle_with_code_is_refused_and_not_run(folder, capsys):
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": _Attack()}, folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pytorch_model.bin holds more than tensors: print\. .*where you trust it"
    ):
        CollieModelForCausalLM.from_pretrained(folder)
    torch.save({"model.norm.weight": _Attack()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match=r"pytorch_model.bin holds more than tensors: print\. .*where you trust it"
    ):
        CollieModelForCausalLM.from_pretrained(folder)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["half", "half of an old one", "empty", "pointer", "page", "list"])
def test_a_damaged_torch_file_is_not_blamed_on_trust(folder, damage):
    file = folder / "pytorch_model.bin"
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(32)}, file, _use_new_zipfile_serialization=damage == "half")
    whole = file.read_bytes()
    content = {
        "empty": b"",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "page": b"<!DOCTYPE html><html>Sign in</html>",
    }
    file.write_bytes(content.get(damage, whole[: len(whole) // 2]))
    if damage == "list":
        torch.save([torch.ones(32)], file)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is not a whole file of torch's: .*") as caught:
        CollieModelForCausalLM.from_pretrained(folder)
    message = str(caught.value)
    assert "trust" not in message and message.endswith("Fetch it again.") and "weights_only" not in message


def test_a_path_that_is_no_folder_is_asked_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"No folder 'no/such'"):
        local_folder("no/such", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"No folder '/no/such/folder/here'"):
        local_folder("/no/such/folder/here", local_files_only=True)


def test_the_hub_is_asked_for_safetensors_and_only_then_for_torch_files(monkeypatch, tmp_path, folder):
    as_torch_files(folder, 1)
    wanted = []

    def download(name, allow_patterns, **hub):
        wanted.append((name, allow_patterns, hub))
        if "pytorch_model*.bin" in allow_patterns:
            shutil.copytree(folder, tmp_path / "cache", dirs_exist_ok=True)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert local_folder("some/model", revision="v2") == tmp_path / "cache"
    assert [("model*.safetensors" in patterns, "pytorch_model*.bin" in patterns) for _, patterns, _ in wanted] == [
        (True, False),
        (False, True),
    ]
    assert all(name == "some/model" and hub == {"revision": "v2"} for name, _, hub in wanted)


def test_an_index_names_no_files_outside_its_folder(folder):
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="it names files outside its folder"):
        open_reader(folder)


def test_quantized_weights_are_refused_whatever_their_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' .* has dtype F8_E4M3: it is quantized"):
        CollieModelForCausalLM.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ConfigError, match=r"config.json has a quantization_config: its weights are quantized"):
        CollieModelForCausalLM.from_pretrained(folder)
