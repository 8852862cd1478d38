"""model_config: read from checkpoints, kept whole, and never executed."""

import copy
import json
import pickle
import subprocess
import sys

import pytest

from collie.config import CollieConfig
from collie.interfaces import ConfigError, MissingExtraError, UnknownFieldError

transformers = pytest.importorskip("transformers")

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 259,
    "house_number": 7,
}
INTERNLM2 = {  # a type that transformers does not have, with code of its own
    "architectures": ["InternLM2ForCausalLM"],
    "attn_implementation": "eager",
    "auto_map": {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 64,
    "model_type": "internlm2",
    "n_inner": None,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "rope_theta": 1000000,
    "temperature": 0.5,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 259,
    "wbits": 32,
}


def checkpoint(folder, values):
    folder.mkdir(exist_ok=True)
    text = values if isinstance(values, str) else json.dumps(values)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def internlm2(tmp_path):
    return checkpoint(tmp_path / "internlm2", INTERNLM2)


@pytest.fixture
def llama(tmp_path):
    return checkpoint(tmp_path / "llama", LLAMA)


def test_a_known_type_gets_its_class(llama):
    config = CollieConfig.from_pretrained(llama)
    assert type(config.model_config) is transformers.LlamaConfig
    assert (config.hidden_size, config.house_number, config.model_type) == (64, 7, "llama")
    assert config.num_hidden_layers == 32  # the class's own default
    assert config.source == str(llama) and config.model_config._name_or_path == str(llama)


def test_an_unknown_type_keeps_every_field(internlm2):
    config = CollieConfig.from_pretrained(str(internlm2))
    assert isinstance(config.model_config, transformers.PretrainedConfig)
    assert {name: getattr(config.model_config, name) for name in INTERNLM2} == INTERNLM2
    assert config.rope_scaling == {"type": "dynamic", "factor": 2.0} and config.n_inner is None


def test_what_is_saved_is_what_was_read(internlm2, tmp_path):
    """model_type, auto_map and the fields that transformers would drop are all in the written file."""
    CollieConfig.from_pretrained(internlm2).save_pretrained(tmp_path / "deep" / "out")
    written = json.loads((tmp_path / "deep" / "out" / "config.json").read_text())
    assert {name: written.get(name) for name in INTERNLM2} == INTERNLM2
    again = CollieConfig.from_pretrained(tmp_path / "deep" / "out")
    assert {name: getattr(again.model_config, name) for name in INTERNLM2} == INTERNLM2


def test_transformers_reads_what_is_saved_of_a_known_type(llama, tmp_path):
    config = CollieConfig.from_pretrained(llama, vocab_size=300)
    config.save_pretrained(tmp_path / "out")
    again = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert type(again) is transformers.LlamaConfig
    assert (again.vocab_size, again.hidden_size, again.house_number) == (300, 64, 7)


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize("model_type", ["internlm2", "llama"])
def test_no_code_of_a_checkpoint_runs(tmp_path, trust, model_type):
    """The module that auto_map names would leave a mark if anybody imported it, whatever trust_remote_code says."""
    folder = checkpoint(tmp_path / "evil", INTERNLM2 | {"model_type": model_type, "rope_scaling": None})
    mark = tmp_path / "mark"
    for name in ("configuration_internlm2", "modeling_internlm2"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from collie.config import CollieConfig\n"
        "c = CollieConfig.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == 'True')\n"
        "c.validate(1); c.save_pretrained(sys.argv[1] + '/out'); assert 'trust_remote_code' not in c.to_dict()\n"
        "assert c.auto_map['AutoConfig'] == 'configuration_internlm2.InternLM2Config'"
    )
    subprocess.run([sys.executable, "-c", script, str(folder), str(trust)], check=True, timeout=120)
    assert not mark.exists()


def test_keywords_are_fields_of_either(internlm2):
    config = CollieConfig.from_pretrained(internlm2, train_epochs=3, init_method="normal", vocab_size=300)
    assert (config.train_epochs, config.initization_method, config.vocab_size) == (3, "normal", 300)
    assert config.model_config.vocab_size == 300
    with pytest.raises(UnknownFieldError, match=r"train_epoch=3 .* Did you mean 'train_epochs'\?"):
        CollieConfig.from_pretrained(internlm2, train_epoch=3)


def test_download_options_go_to_the_download_alone(monkeypatch):
    seen = {}

    def get_config_dict(name, **options):
        seen.update(options, name=name)
        return dict(LLAMA), {}

    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", staticmethod(get_config_dict))
    config = CollieConfig.from_pretrained(
        "house/llama", revision="v2", token="t", cache_dir="c", trust_remote_code=True, seed=3
    )
    assert seen == {"name": "house/llama", "revision": "v2", "token": "t", "cache_dir": "c"}
    assert (config.source, config.seed, config.hidden_size) == ("house/llama", 3, 64)


def test_a_name_that_the_hub_does_not_give(monkeypatch):
    def get_config_dict(name, **options):
        raise OSError("we could not\n reach it")

    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", staticmethod(get_config_dict))
    with pytest.raises(
        ConfigError, match=r"='house/llama' is no folder here and .* from the hub: we could not reach it$"
    ):
        CollieConfig.from_pretrained("house/llama")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", ""])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name):
    with pytest.raises(ConfigError, match=f"={name!r} does not exist. Give a folder with a config.json."):
        CollieConfig.from_pretrained(name)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (None, r"has no config.json. Give the folder of a checkpoint."),
        ("{", r"config.json is not readable as JSON: .*line 1.* Write the checkpoint anew."),
        ("[]", r"config.json holds a list, not an object."),
        ({"model_type": 3}, r"has model_type=3, which is not a string."),
        ({"model_type": "llama", "hidden_size": "wide"}, r"\(model_type='llama'\) has a value .*hidden_size"),
    ],
)
def test_a_bad_checkpoint_is_refused_in_a_sentence(tmp_path, values, sentence):
    folder = tmp_path / "bad"
    folder.mkdir() if values is None else checkpoint(folder, values)
    with pytest.raises(ConfigError, match=sentence) as caught:
        CollieConfig.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_a_file_and_a_subfolder_will_do(llama):
    assert CollieConfig.from_pretrained(llama / "config.json").hidden_size == 64
    assert CollieConfig.from_pretrained(llama.parent, subfolder="llama").hidden_size == 64


def test_the_default_is_an_empty_pretrained_config():
    config = CollieConfig()
    assert type(config.model_config) is transformers.PretrainedConfig
    assert config.model_config is config.model_config and config.is_set("model_config")
    assert CollieConfig().model_config is not config.model_config


def test_dtype_is_the_models():
    config = CollieConfig(model_config={"model_type": "llama"})
    config.dtype = "bfloat16"
    assert config.model_config.dtype == config.dtype == "bfloat16" and "dtype" not in vars(config)


def test_a_dict_becomes_a_configuration_at_the_first_reading():
    config = CollieConfig(
        model_config={"model_type": "llama", "hidden_size": 64}, quantization_config={"load_in_8bit": False}
    )
    assert type(config.model_config) is transformers.LlamaConfig and config.hidden_size == 64
    with pytest.raises(ConfigError, match=r"hidden_size"):
        CollieConfig(model_config={"model_type": "llama", "hidden_size": "wide"}).validate(1)


@pytest.mark.parametrize("folder", ["internlm2", "llama"])
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_the_architecture_survives_copy_pickle_and_file(request, tmp_path, folder, suffix):
    config = CollieConfig.from_pretrained(request.getfixturevalue(folder), seed=7)
    config.to_file(tmp_path / f"c.{suffix}")
    for other in (
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        CollieConfig.from_file(tmp_path / f"c.{suffix}"),
    ):
        assert other == config and other.source == config.source
        assert type(other.model_config) is type(config.model_config)
        assert other.model_config.to_diff_dict() == config.model_config.to_diff_dict()
        other.vocab_size = 1
        assert config.vocab_size == 259


def test_peft_and_quantization_mean_none_until_asked():
    config = CollieConfig()
    assert not config.uses_peft and not config.uses_quantization
    assert config.peft_config is None or config.peft_config.peft_type is None
    assert config.quantization_config is None or not config.quantization_config.load_in_4bit
    config.validate(1)
    assert not config.uses_peft and not config.uses_quantization


def test_a_lora_dict_becomes_one(tmp_path):
    peft = pytest.importorskip("peft")
    config = CollieConfig(peft_config={"peft_type": "LORA", "r": 4, "target_modules": ["q", "v"]})
    config.to_file(tmp_path / "before.yaml")
    assert config.uses_peft and type(config.peft_config) is peft.LoraConfig and config.peft_config.r == 4
    config.to_file(tmp_path / "after.json")
    for name in ("before.yaml", "after.json"):
        again = CollieConfig.from_file(tmp_path / name)
        again.validate(1)
        assert again.peft_config.to_dict() == config.peft_config.to_dict()
    with pytest.raises(ConfigError, match=r"peft_type='LOAR'. Use one of .*LORA"):
        CollieConfig(peft_config={"peft_type": "LOAR"}).validate(1)
    with pytest.raises(ConfigError, match=r"peft_type='LORA'\) has a value that peft refuses: .*rank"):
        CollieConfig(peft_config={"peft_type": "LORA", "rank": 4}).validate(1)
    with pytest.raises(ConfigError, match=r"peft_config .* has a value that peft refuses: .*rank"):
        CollieConfig(peft_config={"rank": 4}).validate(1)


def test_a_quantization_dict_becomes_one():
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match=r"has load_in_3bit=True, unknown to .* Did you mean 'load_in_[48]bit'\?"):
        CollieConfig(quantization_config={"load_in_3bit": True}).validate(1)
    config = CollieConfig(quantization_config={"llm_int8_threshold": 5.0, "quant_method": "bitsandbytes"})
    assert config.quantization_config.llm_int8_threshold == 5.0 and not config.uses_quantization


def test_a_stand_in_without_transformers(monkeypatch, llama):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"needs transformers: pip install 'collie-config\[hf\]'"):
        CollieConfig.from_pretrained(llama)
