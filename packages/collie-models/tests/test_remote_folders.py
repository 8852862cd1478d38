"""Models and adapters by URL: whole whatever interrupts a save, refused where nothing whole is there."""

import itertools

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

from collie.adapters import add_adapter, load_peft, save_peft
from collie.config import CollieConfig
from collie.interfaces import CheckpointError, ConfigError, MissingExtraError
from collie.models import CollieModelForCausalLM
from collie.models.weights import RemoteFolder
from collie.testing import run_ranks, toy_llama_config

peft = pytest.importorskip("peft")

WRITES = ("put_file", "pipe_file", "cp_file", "rm_file", "rm")
IDS = torch.arange(2, 14).view(2, 6)


@pytest.fixture(autouse=True)
def fresh():
    """No process group and no files in memory are left behind."""
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def from_toy(seed, **fields):
    return CollieModelForCausalLM.from_config(CollieConfig(model_config=toy_llama_config(), seed=seed, **fields))


def adapted(seed):
    model = from_toy(seed)
    add_adapter(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return model


def files(url):
    system, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/") for path in system.find(root)}


class Killed(BaseException):
    """What ends a process, so that nothing after it is tidied up."""


@pytest.fixture
def kill_at(monkeypatch):
    """A function that lets the process "end" at the n-th write to a memory:// file system; from then on each fails."""

    def arrange(number):
        counted = itertools.count()
        for name in WRITES:
            original = getattr(MemoryFileSystem, name)

            def write(self, *args, _original=original, **kwargs):
                if next(counted) >= number:
                    raise Killed
                return _original(self, *args, **kwargs)

            monkeypatch.setattr(MemoryFileSystem, name, write)

    return arrange


def test_a_model_is_saved_replaced_and_loaded():
    url, first, second = "memory://bucket/model", from_toy(1), from_toy(2)
    first.save_pretrained(url, max_shard_size="16KB")
    assert "model.safetensors.index.json" in files(url) and "model-00001-of-00007.safetensors" in files(url)
    fsspec.filesystem("memory").pipe_file("/bucket/model/notes.txt", b"mine")
    second.save_pretrained(url)
    assert files(url) == {"config.json", "model.safetensors", "notes.txt"} and files("memory://bucket") == {
        f"model/{name}" for name in files(url)
    }
    first.load_weights(url)
    with torch.no_grad():
        assert torch.equal(first(IDS).logits, second(IDS).logits)


@pytest.mark.parametrize("sizes", [("16KB", "16KB"), ("16KB", "5GB"), ("5GB", "5GB")])
def test_a_model_is_the_old_or_the_new_one_wherever_a_save_was_killed(monkeypatch, kill_at, sizes):
    """At each of its writes; the next save, and what it removes, works from whatever was left."""
    url, old, new, read = "memory://bucket/model", from_toy(1), from_toy(2), from_toy(3)
    outcomes = []
    for number in itertools.count():
        MemoryFileSystem.store.clear()
        old.save_pretrained(url, max_shard_size=sizes[0])
        kill_at(number)
        try:
            new.save_pretrained(url, max_shard_size=sizes[1])
            break
        except Killed:
            pass
        finally:
            monkeypatch.undo()
        read.load_weights(url)
        state, candidates = read.state_dict(), (old.state_dict(), new.state_dict())
        equal = [all(torch.equal(state[name], one[name]) for name in state) for one in candidates]
        assert sorted(equal) == [False, True], number
        outcomes.append(equal[1])
        new.save_pretrained(url)
        assert files("memory://bucket") == {"model/config.json", "model/model.safetensors"}, number
    assert outcomes == sorted(outcomes) and outcomes[0] is False and outcomes[-1] is True


def test_a_first_save_that_was_killed_is_no_model(monkeypatch, kill_at):
    url, model = "memory://bucket/model", from_toy(1)
    for number in itertools.count():
        MemoryFileSystem.store.clear()
        kill_at(number)
        try:
            model.save_pretrained(url, max_shard_size="64KB")
            break
        except Killed:
            monkeypatch.undo()
        with pytest.raises(CheckpointError, match=r"memory://bucket/model is not there to be read: .*to its end"):
            model.load_weights(url)
        model.save_pretrained(url)
        model.load_weights(url)
    assert number > 3


def test_a_save_that_is_refused_leaves_nothing_of_it(monkeypatch):
    url, old, new = "memory://bucket/model", from_toy(1), from_toy(2)

    def full(self, local, remote, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MemoryFileSystem, "put_file", full)
    with pytest.raises(CheckpointError, match=r"could not be saved to memory://bucket/model: .*No space left"):
        new.save_pretrained(url)
    assert not files("memory://bucket")
    monkeypatch.undo()
    old.save_pretrained(url)
    monkeypatch.setattr(MemoryFileSystem, "put_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        new.save_pretrained(url)
    assert files("memory://bucket") == {"model/config.json", "model/model.safetensors"}


def test_a_shard_that_is_missing_or_came_in_part_is_refused(monkeypatch):
    url, model = "memory://bucket/model", from_toy(1)
    model.save_pretrained(url, max_shard_size="16KB")
    get_file = MemoryFileSystem.get_file

    def broken(self, remote, local, **kwargs):
        get_file(self, remote, local, **kwargs)
        if remote.endswith("00002-of-00007.safetensors"):
            with open(local, "r+b") as file:
                file.truncate(100)

    monkeypatch.setattr(MemoryFileSystem, "get_file", broken)
    with pytest.raises(CheckpointError, match="and 100 of them came: the transfer broke off"):
        model.load_weights(url)
    monkeypatch.undo()
    fsspec.filesystem("memory").rm_file("/bucket/model/model-00002-of-00007.safetensors")
    with pytest.raises(CheckpointError, match="model-00002-of-00007"):
        model.load_weights(url)


def test_an_adapter_beside_a_model(monkeypatch, kill_at):
    """Both by one URL: neither save makes the other unreadable, wherever it was killed."""
    url, old, new, read = "memory://bucket/both", adapted(1), adapted(2), adapted(3)
    plain = from_toy(5)
    values = [{n: p.detach().clone() for n, p in one.named_parameters() if "lora" in n} for one in (old, new)]
    outcomes = set()
    for number in itertools.count():
        MemoryFileSystem.store.clear()
        plain.save_pretrained(url)
        save_peft(old, url)
        kill_at(number)
        try:
            save_peft(new, url)
            break
        except Killed:
            monkeypatch.undo()
        load_peft(read, read.collie_config, url)
        found = {n: p.detach() for n, p in read.named_parameters() if "lora" in n}
        outcomes.add(tuple(all(torch.equal(found[n], one[n]) for n in found) for one in values))
        plain.load_weights(url)
    assert outcomes == {(True, False), (False, True)}
    with pytest.raises(CheckpointError, match="bucket/none is not there to be read: it has no adapter"):
        load_peft(read, read.collie_config, "memory://bucket/none")


def test_ranks_upload_what_they_hold_and_all_hear_of_one_that_cannot(tmp_path):
    """file://, two pipeline stages: each rank uploads its own; what stops one both hear, and the old model stays."""
    url = f"file://{tmp_path}/model"

    def run():
        model = from_toy(1, pp_size=2)
        model.save_pretrained(url, max_shard_size="16KB")
        put, said = RemoteFolder.put, None

        def refuse(self, stage, names):
            if torch.distributed.get_rank() == 1:
                raise OSError(5, "Input/output error")
            put(self, stage, names)

        RemoteFolder.put = refuse
        try:
            from_toy(2, pp_size=2).save_pretrained(url)
        except CheckpointError as error:
            said = str(error)
        finally:
            RemoteFolder.put = put
        model.load_weights(url)
        return said

    first, second = run_ranks(2, run)
    assert first == second and "Input/output error" in first
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    saved = {k: v for path in (tmp_path / "model").glob("*.safetensors") for k, v in load_file(path).items()}
    whole = from_toy(1)
    whole.load_weights(tmp_path / "model")
    assert len(saved) == len(list(whole.parameters())) and torch.equal(saved["lm_head.weight"], whole.head.weight)


def test_what_cannot_be_had_by_a_url_is_said():
    model = from_toy(1)
    with pytest.raises(ConfigError, match=r"from_pretrained reads a folder .* load_weights\('memory://x'\)"):
        CollieModelForCausalLM.from_pretrained("memory://x", CollieConfig(model_config=toy_llama_config()))
    with pytest.raises(MissingExtraError, match="this kind of URL needs another package"):
        model.save_pretrained("nosuch://x/y")
