"""Configurations in files: the whole one, and ds_config."""

import json

import pytest
import yaml

from collie.config import CollieConfig, load_config
from collie.interfaces import ConfigError

FULL = {
    "seed": 7,
    "train_epochs": 3,
    "dropout": 0.1,
    "use_flash": False,
    "initization_method": "normal",
    "initization_method_params": {"std": 0.02},
    "ds_config": {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}},
    "peft_config": {"peft_type": "LORA", "r": 8},
    "source": "模型/tiny",
}


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml", "YAML"])
def test_a_file_gives_back_what_was_written(tmp_path, suffix):
    path = tmp_path / "deep" / f"config.{suffix}"
    config = CollieConfig(**FULL)
    config.to_file(path)
    assert CollieConfig.from_file(path) == load_config(str(path)) == config
    assert CollieConfig.from_file(path).to_dict() == config.to_dict()


def test_files_are_of_the_kind_that_their_suffix_says(tmp_path):
    CollieConfig(seed=3).to_file(tmp_path / "c.json")
    CollieConfig(seed=3).to_file(tmp_path / "c.yaml")
    assert json.loads((tmp_path / "c.json").read_text())["seed"] == 3
    text = (tmp_path / "c.yaml").read_text()
    assert yaml.safe_load(text)["seed"] == 3 and text.startswith("seed: 3\n")


def test_a_file_may_have_a_few_fields_and_aliases(tmp_path):
    (tmp_path / "c.yaml").write_text("train_epochs: 2\ninit_method: orthogonal\n")
    assert CollieConfig.from_file(tmp_path / "c.yaml") == CollieConfig(train_epochs=2, initization_method="orthogonal")
    (tmp_path / "empty.yaml").write_text("")
    assert CollieConfig.from_file(tmp_path / "empty.yaml") == CollieConfig()


@pytest.mark.filterwarnings("ignore:dp_size=1 becomes")
def test_a_dp_size_that_was_set_by_itself_is_not_written_as_asked_for(tmp_path):
    """The file of a run on four ranks serves a run on two; one that was asked for stays."""
    config, asked = CollieConfig(), CollieConfig(dp_size=4)
    config.validate(4)
    asked.validate(4)
    assert (config.dp_size, config.to_dict()["dp_size"], asked.to_dict()["dp_size"]) == (4, 1, 4)
    config.to_file(tmp_path / "c.json")
    again = CollieConfig.from_file(tmp_path / "c.json")
    again.validate(2)
    assert again.dp_size == 2


def test_a_path_and_sets_are_written_as_json_can(tmp_path):
    config = CollieConfig(ds_config=tmp_path / "ds.json", peft_config={"target_modules": {"b", "a"}})
    config.to_file(tmp_path / "c.json")
    values = json.loads((tmp_path / "c.json").read_text())
    assert values["ds_config"] == str(tmp_path / "ds.json") and values["peft_config"]["target_modules"] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("c.toml", "", r"has the suffix '.toml'. Use one of .json, .yaml, .yml."),
        ("c.json", "{", r"is not valid JSON: .*line 1.*Mend the file."),
        ("c.yaml", "a: [", r"is not valid YAML: .*line 1.*Mend the file."),
        ("c.yaml", "- 1", r"holds a list. Write names and values in it."),
        ("c.yaml", "1: 2", r"has the name 1, which is not a string. Put it in quotes."),
        ("c.yaml", "!!python/object/apply:os.getcwd []", r"is not valid YAML: could not determine a constructor"),
        ("c.yaml", "train_epoch: 3\nmodel_config: null", r"train_epoch=3 .* Did you mean 'train_epochs'\?"),
        ("c.yaml", "\udcff", r"cannot be read: .*utf-8.*Give a JSON or YAML file."),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(tmp_path, name, text, sentence):
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=sentence):
        CollieConfig.from_file(tmp_path / name)


def test_a_missing_file_and_an_unknown_suffix_to_write(tmp_path):
    with pytest.raises(ConfigError, match=r"path='.*none.yaml' does not exist"):
        CollieConfig.from_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"has the suffix ''"):
        CollieConfig().to_file(tmp_path / "config")


@pytest.mark.parametrize("name", ["ds.json", "ds.yaml", "ds"])
def test_ds_config_may_be_a_file(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text('{"zero_optimization": {"stage": 2}, "csv_monitor": {"enabled": true}}')
    monkeypatch.chdir(tmp_path)
    for given in (name, tmp_path / name):
        config = CollieConfig(ds_config=given)
        config.validate(1)
        assert config.zero_stage == 2 and config.monitor_config["csv_monitor"]["enabled"]
        assert config.ds_config == given


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"ds_config='.*ds.json' does not exist. Give the name of a JSON or YAML file."),
        ("{", r"ds_config='.*ds.json' is not valid JSON"),
        ("[]", r"ds_config='.*ds.json' holds a list"),
    ],
)
def test_an_unreadable_ds_config_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text)
    config = CollieConfig(ds_config=str(path))
    for use in (lambda: config.validate(1), lambda: config.zero_stage, lambda: config.monitor_config):
        with pytest.raises(ConfigError, match=sentence):
            use()


def test_a_ds_config_that_is_a_folder_or_a_number():
    with pytest.raises(ConfigError, match=r"ds_config='/' cannot be read: .*Is a directory"):
        CollieConfig(ds_config="/").validate(1)
    with pytest.raises(ConfigError, match=r"ds_config=3 has type int. Give a dict or the name of a JSON or YAML file."):
        CollieConfig(ds_config=3).validate(1)
