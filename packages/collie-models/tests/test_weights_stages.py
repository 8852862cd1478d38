"""Saving by the first rank of each pipeline stage: one checkpoint, whole or not there at all."""

import json

import pytest
import torch
from safetensors.torch import load_file

from collie.config import CollieConfig
from collie.interfaces import CheckpointError
from collie.models import CollieModelForCausalLM
from collie.models.weights import _shards, _writer
from collie.parallel import _gather, setup_distribution
from collie.testing import toy_llama_config


def settings(tied, **sizes):
    return CollieConfig(model_config=toy_llama_config(tie_word_embeddings=tied, num_hidden_layers=3), **sizes)


def stage(tied, tp):
    """What a rank of two stages holds."""
    return CollieModelForCausalLM.from_config(settings(tied, pp_size=2, tp_size=tp))


def whole(tied, folder):
    CollieModelForCausalLM.from_config(settings(tied)).save_pretrained(folder, max_shard_size="9KB")


def save(tied, tp, folder, size):
    stage(tied, tp).save_pretrained(folder, max_shard_size=size)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("tied", "tp"), [(False, 1), (True, 1), (True, 2)])
def test_two_stages_write_the_checkpoint_of_one_process(ranks, tmp_path, tied, tp):
    ranks(1, whole, tied, tmp_path / "one")
    ranks(2 * tp, save, tied, tp, tmp_path / "two", "9KB")
    expected, saved = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
    assert (tmp_path / "two" / "config.json").read_bytes() == (tmp_path / "one" / "config.json").read_bytes()
    index = json.loads((tmp_path / "two" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "two").glob("*.safetensors"))
    assert files == [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert all(name in load_file(tmp_path / "two" / file) for name, file in index["weight_map"].items())
    assert index["weight_map"]["model.embed_tokens.weight"] == files[0] and len(files) > 4
    assert index["weight_map"]["model.norm.weight"] > index["weight_map"]["model.layers.0.mlp.down_proj.weight"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_each_stage_has_a_file_of_its_own_where_one_would_do(ranks, tmp_path):
    ranks(2, save, False, 1, tmp_path / "saved", "5GB")
    assert sorted(contents(tmp_path / "saved")) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip


def no_space(*arguments, **keywords):
    raise OSError(28, "No space left on device")


def save_in_vain(folder, stage_that_fails, where):
    """On the stage's ranks a step of writing fails; what each rank is told."""
    model = stage(False, 2)
    topology = setup_distribution(model.collie_config)
    if topology.pp_rank == stage_that_fails:
        module, function = {"shard": (_shards, "save_file"), "description": (_writer, "write_description")}[where]
        setattr(module, function, no_space)
    with pytest.raises(CheckpointError) as caught:
        model.save_pretrained(folder, max_shard_size="9KB")
    return str(caught.value)


@pytest.mark.parametrize(("failing", "where"), [(0, "shard"), (1, "shard"), (0, "description")])
def test_what_stops_one_writer_is_told_to_every_rank_and_leaves_nothing(ranks, tmp_path, failing, where):
    folder = tmp_path / "saved"
    ranks(1, whole, False, folder)
    before = contents(folder)
    messages = ranks(4, save_in_vain, folder, failing, where)
    assert set(messages) == {f"The model could not be saved to {folder}: [Errno 28] No space left on device."}
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def save_without_room(folder):
    """One rank, which writes nothing itself, finds no room to take part in gathering the second stage."""
    model = stage(False, 2)
    if setup_distribution(model.collie_config).rank == 3:
        _gather._make_room = no_space
    with pytest.raises(CheckpointError) as caught:
        model.save_pretrained(folder)
    return str(caught.value)


def test_what_stops_one_rank_in_gathering_is_told_to_every_rank(ranks, tmp_path):
    messages = ranks(4, save_without_room, tmp_path / "saved", timeout=30)
    [message] = set(messages)
    assert message.startswith("layers.") and message.endswith(
        "could not be gathered: [Errno 28] No space left on device."
    )
    assert list(tmp_path.iterdir()) == []


def save_apart(folder):
    """Rank 0's scratch folder is on a disk of its own."""
    model = stage(False, 1)
    _writer.tempfile.mkdtemp = lambda **arguments: str(folder / "elsewhere")
    with pytest.raises(CheckpointError) as caught:
        model.save_pretrained(folder / "saved")
    return str(caught.value)


def test_nodes_without_a_common_file_system_are_told_so(ranks, tmp_path):
    for message in ranks(2, save_apart, tmp_path):
        assert "does not see that folder of rank 0. Give a path on a file system that all nodes share" in message


def resized(folder, tied, **sizes):
    """More tokens, then fewer, then saved."""
    model = CollieModelForCausalLM.from_config(settings(tied, **sizes))
    model.resize_token_embeddings(120)
    model.resize_token_embeddings(109)
    model.save_pretrained(folder)
    return model(torch.tensor([[5, 100, 108, 7]])).logits.detach()


@pytest.mark.parametrize(("tied", "tp"), [(False, 1), (True, 1), (True, 2)])
def test_stages_resize_their_vocabulary_as_one_process_does(ranks, tmp_path, tied, tp):
    [expected] = ranks(1, lambda: resized(tmp_path / "one", tied))
    for logits in ranks(2 * tp, lambda: resized(tmp_path / "two", tied, pp_size=2, tp_size=tp)):
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
