"""Models whose weights ZeRO-3 splits over two ranks: the same numbers as one process, in every call."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from collie.config import CollieConfig
from collie.interfaces import CheckpointError
from collie.models import CollieModelForCausalLM
from collie.parallel import env, release_parameters
from collie.testing import golden, toy_llama_config

pytest.importorskip("deepspeed")
IDS = torch.tensor([[5, 9, 13, 40, 41, 7, 22, 81], [1, 2, 3, 4, 5, 6, 7, 8]])


def load(case, stage, **fields):
    config = CollieConfig.from_pretrained(str(golden(case)))
    config.ds_config = {"zero_optimization": {"stage": stage}}
    for name, value in fields.items():
        setattr(config, name, value)
    return CollieModelForCausalLM.from_pretrained(golden(case), config=config)


def calls(case, stage, checkpointing):
    """Logits, a chunked loss and one rank's gradients of its own row."""
    model = load(case, stage, checkpointing=checkpointing)
    row = IDS[env.rank : env.rank + 1] if stage == 3 else IDS
    with torch.no_grad():
        logits = model(row).logits
    model.train()
    grads = {}
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: grads.__setitem__(name, p.grad.clone()))
    loss = model(row, labels=row, return_logits=False, num_items_in_batch=14).loss
    loss.backward()
    release_parameters(model)
    return logits, loss.detach(), grads


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", ["llama3", "moss_moon", "internlm2"])
def test_forward_and_gradients_equal_one_process(ranks, case, checkpointing):
    [(logits, loss, grads)] = ranks(1, calls, case, 0, checkpointing)
    split = ranks(2, calls, case, 3, checkpointing)
    assert_close(torch.cat([part[0] for part in split]), logits, atol=1e-5, rtol=0)
    assert_close(split[0][1] + split[1][1], loss, atol=1e-5, rtol=0)
    for name, grad in grads.items():
        assert_close(split[0][2][name] + split[1][2][name], grad, atol=1e-5, rtol=1e-4)


def generate_alone(case):
    model = load(case, 0)
    return model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)[:, 8:].tolist()


def generations(case, use_cache):
    """Greedy tokens of a left-padded row of each rank, ended at a token that comes sooner on rank 0."""
    model = load(case, 3)
    row = IDS[env.rank : env.rank + 1]
    arguments = {"do_sample": False, "pad_token_id": 0, "use_cache": use_cache}
    free = model.generate(row, max_new_tokens=6, eos_token_id=None, **arguments)[0, 8:]
    padded, keep = torch.nn.functional.pad(row, (3, 0)), torch.ones(1, 11, dtype=torch.long)
    keep[:, :3] = 0
    stop = free[1 + 2 * env.rank].item()
    ended = model.generate(padded, attention_mask=keep, max_new_tokens=6, eos_token_id=stop, **arguments)[0, 11:]
    return free.tolist(), ended.tolist(), stop


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_ends_apart_and_does_not_hang(ranks, use_cache):
    [expected] = ranks(1, generate_alone, "moss_moon")
    lengths = []
    for (free, ended, stop), row in zip(ranks(2, generations, "moss_moon", use_cache), expected, strict=True):
        assert free == row
        assert ended == row[: row.index(stop) + 1]
        lengths.append(len(ended))
    assert lengths[0] < lengths[1]  # the case that could hang


def save(case, folder):
    model = load(case, 3)
    model.save_pretrained(folder, max_shard_size="50KB")
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("case", ["llama3", "moss_moon", "internlm2"])
def test_saving_gathers_what_was_loaded(ranks, case, tmp_path):
    assert ranks(2, save, case, tmp_path / "saved") == [0, 0]  # nothing whole is left on a rank
    source, saved = load_file(golden(case) / "model.safetensors"), {}
    for shard in (tmp_path / "saved").glob("*.safetensors"):
        saved |= load_file(shard)
    assert saved.keys() == {name for name in source if "causal_mask" not in name}
    assert all(torch.equal(saved[name], source[name]) for name in saved)
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == json.loads(
        (golden(case) / "config.json").read_text()
    )


def save_where_a_file_is(folder):
    with pytest.raises(CheckpointError) as caught:
        load("llama3", 3).save_pretrained(folder)
    return str(caught.value)


def test_a_failed_save_fails_on_every_rank(ranks, tmp_path):
    (tmp_path / "file").write_text("")
    messages = ranks(2, save_where_a_file_is, tmp_path / "file" / "saved")
    assert messages[0] == messages[1] and "could not be saved" in messages[0]


def initialise(stage):
    config = CollieConfig(model_config=toy_llama_config(tie_word_embeddings=True))
    config.ds_config = {"zero_optimization": {"stage": stage}}
    with torch.no_grad():
        return CollieModelForCausalLM.from_config(config)(IDS).logits


def test_initialisation_is_the_same_in_every_layout(ranks):
    [alone] = ranks(1, initialise, 0)
    for logits in ranks(2, initialise, 3):
        assert_close(logits, alone, atol=1e-6, rtol=0)


def save_toy(folder):
    CollieModelForCausalLM.from_config(CollieConfig(model_config=toy_llama_config())).save_pretrained(folder)


def read_wrong(folder):
    config = CollieConfig.from_pretrained(str(folder))
    config.ds_config = {"zero_optimization": {"stage": 3}}
    with pytest.raises(CheckpointError) as caught:
        CollieModelForCausalLM.from_pretrained(folder, config=config)
    return str(caught.value)


def test_a_wrong_checkpoint_is_refused_on_every_rank(ranks, tmp_path):
    ranks(1, save_toy, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"intermediate_size": 64}))
    messages = ranks(2, read_wrong, tmp_path)
    assert messages[0] == messages[1] and "has shape (48, 32)" in messages[0]


def save_changed(folder):
    model = load("llama3", 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model(IDS).logits


def replace(folder):
    model = load("llama3", 3)
    model.load_weights(folder)
    with torch.no_grad():
        return model(IDS).logits


def test_weights_are_replaced_under_zero3(ranks, tmp_path):
    [expected] = ranks(1, save_changed, tmp_path / "other")
    for logits in ranks(2, replace, tmp_path / "other"):
        assert_close(logits, expected, atol=1e-5, rtol=0)


def replace_in_vain(folders, stage):
    """Each rank reads a folder of its own, of which the second cannot be read; what they hear, and the logits after."""
    model = load("llama3", stage)
    with torch.no_grad():
        before = model(IDS).logits
    with pytest.raises(CheckpointError) as caught:
        model.load_weights(folders[env.rank])
    with pytest.raises(CheckpointError) as made:
        CollieModelForCausalLM.from_pretrained(folders[env.rank], config=model.collie_config)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before)
    return str(caught.value), str(made.value)


@pytest.mark.parametrize("stage", [0, 3])
def test_what_one_rank_cannot_read_no_rank_takes(ranks, tmp_path, stage):
    folders = tmp_path / "whole", tmp_path / "cut"
    ranks(1, save_changed, folders[0])
    shutil.copytree(*folders)
    with (folders[1] / "model.safetensors").open("r+b") as file:
        file.truncate(2000)
    for messages in ranks(2, replace_in_vain, folders, stage, timeout=30):
        assert all("cut/model.safetensors is not a whole safetensors file" in message for message in messages)
