"""Checkpoints by their names on a Hub: fetched once for a node, by revision and token, from a cache, and offline."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from hub_server import Hub, serving
from huggingface_hub import constants

from collie.config import CollieConfig
from collie.interfaces import CheckpointError, ConfigError
from collie.models import CollieModelForCausalLM
from collie.models.weights import local_folder
from collie.parallel import _once, env, once_per_node, setup_distribution
from collie.testing import toy_llama_config

NAME = "someone/tiny"
IDS = torch.arange(2, 14).view(2, 6)


def save(folder, seed):
    CollieModelForCausalLM.from_config(CollieConfig(model_config=toy_llama_config(), seed=seed)).save_pretrained(
        folder, max_shard_size="20KB"
    )


@pytest.fixture(scope="module")
def revisions(ranks, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for seed, name in enumerate(("main", "v2")):
        ranks(1, save, root / name, seed)
        (root / name / "tokenizer.json").write_text("{}")
        (root / name / "model.onnx").write_text("not ours")
    return {"main": root / "main", "v2": root / "v2"}


@pytest.fixture
def hub(revisions):
    with serving(Hub(NAME, revisions)) as served:
        yield served


@pytest.fixture(autouse=True)
def client(monkeypatch, request):
    """The client reads its environment at its import, which was long ago: tell it here what it would have read."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    if "hub" in request.fixturenames:
        url = request.getfixturevalue("hub").url
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def files(folder):
    return {path.name: 1 for path in folder.iterdir() if path.suffix != ".onnx"}


def load(cache, stage, **arguments):
    """A user's script: a config by the name, then the model by the name. Logits, and where the model came from."""
    config = CollieConfig.from_pretrained(NAME, cache_dir=str(cache), **arguments)
    config.ds_config = {"zero_optimization": {"stage": stage}}
    model = CollieModelForCausalLM.from_pretrained(NAME, config=config, cache_dir=cache, **arguments)
    with torch.no_grad():
        return model(IDS).logits, model.source


def load_folder(folder):
    with torch.no_grad():
        return CollieModelForCausalLM.from_pretrained(folder)(IDS).logits


@pytest.mark.parametrize(("count", "stage"), [(2, 0), (3, 3)])
def test_each_file_is_fetched_once_for_all_ranks_of_a_node(ranks, hub, revisions, tmp_path, count, stage):
    [expected] = ranks(1, load_folder, revisions["main"])
    for logits, source in ranks(count, load, tmp_path, stage):
        assert torch.allclose(logits, expected, atol=1e-5)
        assert source.name == hub.commit("main") and tmp_path in source.parents
    assert hub.fetched() == files(revisions["main"])
    assert [n for key, n in hub.requests.items() if "/tree/" in key or "/revision/" in key] == [1, 1]
    before = hub.requests.copy()
    ranks(count, load, tmp_path, stage)
    assert hub.fetched() == files(revisions["main"])  # from the cache
    assert (
        sum((hub.requests - before).values()) == count + 1
    )  # each rank asks for the commit to read config.json, and one for the model


def test_a_revision_is_a_branch_or_a_commit(ranks, hub, revisions, tmp_path):
    [expected] = ranks(1, load_folder, revisions["v2"])
    for revision in ("v2", hub.commit("v2")):
        [(logits, source)] = ranks(1, fetch_and_load, tmp_path, {"revision": revision})
        assert torch.equal(logits, expected) and source.name == hub.commit("v2")


def fetch_and_load(cache, arguments):
    model = CollieModelForCausalLM.from_pretrained(NAME, cache_dir=cache, **arguments)
    with torch.no_grad():
        return model(IDS).logits, model.source


def test_a_token_opens_what_is_gated(ranks, hub, tmp_path):
    hub.token = "hf_secret"
    for message in ranks(2, refused, tmp_path, {"token": "hf_wrong"}):
        assert "restricted" in message and "hf_wrong" not in message
    ranks(2, fetch_and_load, tmp_path, {"token": "hf_secret"})


def test_a_forced_download_fetches_again_and_the_cache_serves_without_network(ranks, hub, revisions, tmp_path):
    for message in ranks(2, refused, tmp_path, {"local_files_only": True}):
        assert message.startswith(f"No folder '{NAME}'")
    ranks(2, fetch_and_load, tmp_path, {})
    ranks(2, fetch_and_load, tmp_path, {"force_download": True})
    assert hub.fetched() == dict.fromkeys(files(revisions["main"]), 2)
    before = hub.requests.copy()
    ranks(2, fetch_and_load, tmp_path, {"local_files_only": True})
    assert hub.requests == before


def refused(cache, arguments, name=NAME):
    with pytest.raises(CheckpointError) as caught:
        local_folder(name, cache_dir=cache, **arguments)
    return str(caught.value)


def test_what_the_hub_does_not_have_is_told_to_every_rank_in_the_same_words(ranks, hub, tmp_path):
    for name, arguments in (("someone/else", {}), (NAME, {"revision": "v9"})):
        first, second = ranks(2, refused, tmp_path, arguments, name)
        assert first == second and first.startswith(f"No folder '{name}'") and "404" in first
    assert hub.fetched() == {}


def test_arguments_that_mean_nothing_here_are_refused():
    for argument, instead in (("subfolder", "path"), ("proxies", "HTTPS_PROXY"), ("use_auth_token", "called token")):
        with pytest.raises(ConfigError, match=rf"does not take {argument}='x'\. .*{instead}"):
            CollieModelForCausalLM.from_pretrained(NAME, **{argument: "x"})


_SCRIPT = """
import sys
from collie.models.weights import local_folder
print(local_folder(sys.argv[1]))
"""


def test_the_environments_endpoint_and_cache_are_heeded_and_its_offline_switch(hub, tmp_path, monkeypatch):
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    command = [sys.executable, "-c", _SCRIPT, NAME]
    online = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert online.stdout.strip().endswith(hub.commit("main")), online.stderr
    assert hub.requests["GET /api/models/someone/tiny/revision/main"] == 1
    before = hub.requests.copy()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert str(local_folder(NAME, cache_dir=tmp_path / "hub")) == online.stdout.strip()
    with pytest.raises(CheckpointError, match="No folder 'someone/other'"):
        local_folder("someone/other", cache_dir=tmp_path / "hub")
    assert hub.requests == before


def test_a_rank_that_nobody_else_joins_works_alone(ranks):
    def alone():
        setup_distribution(CollieConfig())
        return once_per_node("one", lambda: str(env.rank)) if os.environ["RANK"] == "1" else "none"

    assert ranks(2, alone) == ["none", "1"]


def counted(folder):
    setup_distribution(CollieConfig())
    results = [once_per_node("the same", lambda n=n: _note(folder, n)) for n in range(3)]
    return results, once_per_node("another", lambda: _note(folder, 9))


def _note(folder, number):
    with (folder / "notes").open("a") as file:
        file.write(f"{number}\n")
    return f"result {number}"


def test_calls_of_the_same_name_are_each_done_once(ranks, tmp_path):
    for results in ranks(3, counted, tmp_path):
        assert results == (["result 0", "result 1", "result 2"], "result 9")
    assert sorted((tmp_path / "notes").read_text().split()) == ["0", "1", "2", "9"]


def slow_or_dead(dead):
    """The rank that works takes longer than the others' patience, showing signs of life or not."""
    _once._PATIENCE, _once._SIGN_OF_LIFE_S = _once.timedelta(seconds=0.3), 0.05
    if dead:
        _once._signs_of_life = lambda store, key: threading.Lock()

    def work():
        time.sleep(0.9)
        return "done"

    try:
        return once_per_node("long work", work)
    except CheckpointError as error:
        return str(error)


def test_long_work_is_waited_for_while_it_shows_signs_of_life(ranks):
    assert ranks(2, slow_or_dead, False) == ["done", "done"]
    results = ranks(2, slow_or_dead, True)
    assert sorted(results)[0] == "done"
    assert "no sign of life" in sorted(results)[1] and sorted(results)[1].startswith("long work")
