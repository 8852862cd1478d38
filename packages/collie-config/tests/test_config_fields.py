"""Fields, defaults and names of CollieConfig. Nothing here needs transformers."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import pytest

from collie.config import CollieConfig
from collie.interfaces import ConfigError, UnknownFieldError

TUTORIAL = {  # the table of the tutorial, section 2.2
    "seed": 42,
    "dp_size": 1,
    "pp_size": 1,
    "tp_size": 1,
    "pp_partition_method": "parameters",
    "train_epochs": 100,
    "eval_per_n_steps": 0,
    "eval_per_n_epochs": 0,
    "train_micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_batch_size": 1,
    "checkpointing": True,
    "use_flash": True,
    "dropout": 0.0,
    "initization_method": "none",
    "initization_method_params": None,
    "low_cpu_mem_usage": True,
    "ds_config": "",
}
LAZY = ("model_config", "peft_config", "quantization_config")


class Architecture:
    """Stands for a PretrainedConfig."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def to_dict(self):
        return dict(self.__dict__)


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_defaults_are_those_of_the_tutorial():
    config = CollieConfig()
    assert {name: getattr(config, name) for name in TUTORIAL} == TUTORIAL
    assert (
        (config.dataloader_num_workers, config.pp_schedule) == (0, "1f1b")
        and config.sequence_parallel is False
        and config.source is None
    )
    assert config.group_by_length is False
    names = [field.name for field in dataclasses.fields(CollieConfig)]
    added = ["dataloader_num_workers", "group_by_length", "pp_schedule", "sequence_parallel", "on_nan", "source"]
    assert names == [*TUTORIAL, *LAZY, *added]


def test_import_is_quick_and_light():
    """Under 0.1 s of its own (the best of three), and none of the heavy packages comes with it."""
    code = (
        "import sys, time; begin = time.process_time(); import collie.config; took = time.process_time() - begin\n"
        "print(took, [m for m in ('torch', 'transformers', 'numpy', 'deepspeed', 'peft', 'yaml') if m in sys.modules])"
    )
    results = [run(code).split(maxsplit=1) for _ in range(3)]
    assert min(float(took) for took, _ in results) < 0.1
    assert [heavy for _, heavy in results] == ["[]"] * 3


def test_ordinary_use_stays_light():
    """Settings, validation, copies and files need transformers only where model_config is read."""
    code = (
        "import copy, pickle, sys, tempfile; from collie.config import CollieConfig\n"
        "c = CollieConfig(train_epochs=2, ds_config={'zero_optimization': {'stage': 3}})\n"
        "c.validate(1); c = pickle.loads(pickle.dumps(copy.deepcopy(c))); c.to_file(tempfile.mkdtemp() + '/c.yaml')\n"
        "assert c.zero_stage == 3 and not c.uses_peft and not c.uses_quantization and repr(c) and c == c\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    assert run(code) == "[]"


@pytest.mark.parametrize("name", [*TUTORIAL, "dataloader_num_workers", "source"])
def test_every_field_can_be_given_and_set(name):
    value = object()
    assert getattr(CollieConfig(**{name: value}), name) is value
    config = CollieConfig()
    setattr(config, name, value)
    assert getattr(config, name) is value


def test_the_right_spelling_of_initization_is_accepted():
    config = CollieConfig(init_method="normal")
    assert config.initization_method == config.init_method == "normal"
    config.init_method = "orthogonal"
    assert config.initization_method == "orthogonal"
    assert "init_method" not in config.to_dict()


@pytest.mark.parametrize("via", ["constructor", "assignment"])
def test_a_misspelled_field_is_refused_with_the_nearest(via):
    """Also an AttributeError, as Python's own; the sentence has the name, the value and the mend."""
    with pytest.raises(ConfigError) as caught:
        if via == "constructor":
            CollieConfig(model_config=Architecture(), train_epoch=3)
        else:
            CollieConfig(model_config=Architecture()).train_epoch = 3
    assert isinstance(caught.value, AttributeError)
    assert str(caught.value) == (
        "train_epoch=3 is neither a field of CollieConfig nor one of its model_config. Did you mean 'train_epochs'?"
    )


def test_unknown_names_are_read_from_and_set_on_the_model():
    config = CollieConfig(model_config=Architecture(hidden_size=64, seed=7))
    assert config.hidden_size == 64 and config.seed == 42
    config.hidden_size = 128
    assert config.model_config.hidden_size == 128 and "hidden_size" not in vars(config)
    with pytest.raises(AttributeError, match=r"hiden_size is neither .* nor"):
        config.hiden_size  # noqa: B018
    assert not hasattr(config, "intermediate_size")


def test_without_transformers_unknown_names_are_still_refused_by_name():
    """Even a default config, whose model_config cannot be made then, says what was misspelled."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from collie.config import CollieConfig; c = CollieConfig(); assert not hasattr(c, 'hidden_size')\n"
        "try: c.train_epoch = 1\n"
        "except AttributeError as error: print(error)\n"
        "try: c.model_config\n"
        "except ImportError as error: print(error)\n"
        "print(c.quantization_config)"
    )
    lines = run(code).splitlines()
    assert lines[0].endswith("Did you mean 'train_epochs'?")
    assert lines[1:] == ["model_config needs transformers: pip install 'collie-config[hf]'", "None"]


def test_without_peft_the_default_adapter_is_none():
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from collie.config import CollieConfig; c = CollieConfig(); print(c.peft_config, c.uses_peft)\n"
        "c.peft_config = {'peft_type': 'LORA'}\n"
        "try: c.validate(1)\n"
        "except ImportError as error: print(error)"
    )
    assert run(code).splitlines() == ["None False", "peft_config needs peft: pip install 'collie-models[peft]'"]


@pytest.mark.parametrize("name", ["zero_stage", "deepspeed", "monitor_config", "uses_peft", "uses_quantization"])
def test_what_is_derived_cannot_be_set(name):
    with pytest.raises(
        UnknownFieldError, match=rf"{name}=1 cannot be set: it is read from (ds|peft|quantization)_config"
    ):
        setattr(CollieConfig(), name, 1)


def test_a_copy_shares_nothing():
    config = CollieConfig(ds_config={"zero_optimization": {"stage": 1}}, model_config=Architecture(hidden_size=64))
    other = copy.deepcopy(config)
    assert other == config
    other.ds_config["zero_optimization"]["stage"] = 3
    other.hidden_size = 128
    other.seed = 1
    assert (config.zero_stage, config.hidden_size, config.seed) == (1, 64, 42) and other != config


def test_pickle_keeps_everything_and_makes_nothing():
    config = CollieConfig(seed=7, ds_config={"a": [1]}, model_config=Architecture(hidden_size=64))
    config.validate(1)
    other = pickle.loads(pickle.dumps(config))
    assert other == config and other.hidden_size == 64
    assert other.is_set("model_config") and not other.is_set("peft_config") and not other.is_set("quantization_config")


def test_configs_are_equal_by_value_and_not_hashable():
    assert CollieConfig(seed=1) == CollieConfig(seed=1) != CollieConfig(seed=2)
    assert CollieConfig() != "config"
    with pytest.raises(TypeError):
        hash(CollieConfig())


def test_repr_shows_what_differs():
    assert (
        repr(CollieConfig(seed=1, model_config=Architecture())) == "CollieConfig(seed=1, model_config=Architecture(…))"
    )


def test_the_deepspeed_dict_is_a_copy():
    config = CollieConfig(ds_config={"fp16": {"enabled": True}})
    config.deepspeed["fp16"]["enabled"] = False
    assert config.ds_config == {"fp16": {"enabled": True}} and config.deepspeed == config.ds_config
    assert CollieConfig().deepspeed == {} == CollieConfig(ds_config=None).deepspeed
