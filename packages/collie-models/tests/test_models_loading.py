"""From config to model: the family that is found, the dtype, initialisation, and what is refused in a sentence."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig

import collie.models
from collie.config import CollieConfig
from collie.interfaces import CheckpointError, ConfigError, ParallelSizeError
from collie.models import (
    CollieModelForCausalLM,
    LlamaForCausalLM,
    Moss003MoonConfig,
    Moss003MoonForCausalLM,
    MossForCausalLM,
    _registry,
    find_family,
    register,
)
from collie.models._steps import build
from collie.testing import golden, run_ranks, toy_llama_config, toy_moss_config

IDS = torch.arange(2, 14).view(2, 6)


@pytest.fixture(autouse=True)
def end_process_group():
    """Loading a model makes this process a world of one; tests that fork ranks need it to be none."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def config(model_config=None, **fields):
    return CollieConfig(model_config=model_config or toy_llama_config(), **fields)


def test_names_that_are_promised():
    assert set(collie.models.__all__) >= {"CollieModelForCausalLM", "LlamaForCausalLM", "Moss003MoonForCausalLM"}
    assert all(hasattr(collie.models, name) for name in collie.models.__all__)


@pytest.mark.parametrize(
    ("case", "family"),
    [
        ("llama2", collie.models.LlamaForCausalLM),
        ("llama3", collie.models.LlamaForCausalLM),
        ("qwen2", collie.models.Qwen2ForCausalLM),
        ("qwen3", collie.models.Qwen3ForCausalLM),
        ("mistral", collie.models.MistralForCausalLM),
        ("moss_moon", collie.models.Moss003MoonForCausalLM),
        ("codegen", collie.models.Moss003MoonForCausalLM),
        ("moss7b_via_llama", collie.models.MossForCausalLM),
        ("chatglm2", collie.models.ChatGLM2ForCausalLM),
        ("chatglm", collie.models.ChatGLMForCausalLM),
        ("internlm", collie.models.InternLMForCausalLM),
        ("internlm2", collie.models.InternLM2ForCausalLM),
    ],
)
def test_the_family_is_found(case, family):
    assert type(CollieModelForCausalLM.from_pretrained(golden(case))) is family
    assert type(family.from_pretrained(golden(case))) is family


def test_a_config_of_a_familys_own_class_serves_the_family_again():
    """Made of a plain one, which states its model_type and leaves it out of to_dict."""
    plain = toy_moss_config()
    assert plain.to_dict()["model_type"] == ""
    adopted = find_family(plain).adopt(plain)
    assert (type(adopted), adopted.model_type) == (Moss003MoonConfig, "moss")
    assert find_family(adopted) is Moss003MoonForCausalLM


def test_unknown_model_types_are_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError,
        match=r"'bert'; known are chatglm, codegen, internlm, internlm2, llama, mistral, moss, qwen2, qwen3\.",
    ):
        CollieModelForCausalLM.from_config(config(PretrainedConfig.from_dict({"model_type": "bert"})))
    with pytest.raises(ConfigError, match=r"Did you mean 'llama'\?"):
        find_family(PretrainedConfig.from_dict({"model_type": "lama"}))


def test_a_familys_class_refuses_another_familys_config():
    with pytest.raises(ConfigError, match=r"MossForCausalLM does not serve .* 'moss': Moss003MoonForCausalLM does"):
        MossForCausalLM.from_pretrained(golden("moss_moon"))
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM does not serve .* 'moss': Moss003MoonForCausalLM does"):
        LlamaForCausalLM.from_pretrained(golden("moss_moon"))


def test_another_distribution_brings_a_family(monkeypatch):
    class Mine(LlamaForCausalLM):
        model_types = ("mine",)

    entry = SimpleNamespace(load=lambda: Mine)
    asked = []
    monkeypatch.setattr(_registry, "entry_points", lambda group: asked.append(group) or [entry])
    monkeypatch.setattr(_registry, "_families", list(_registry._families))
    _registry._import_families.cache_clear()
    try:
        model = CollieModelForCausalLM.from_config(
            config(PretrainedConfig.from_dict(toy_llama_config().to_dict() | {"model_type": "mine"}))
        )
    finally:
        _registry._import_families.cache_clear()
    assert type(model) is Mine and asked == ["collie.models"]
    assert register(Mine) is Mine and _registry._families.count(Mine) == 1


@pytest.mark.parametrize(
    ("case", "field", "value"),
    [("chatglm2", "rope_ratio", 16), ("chatglm2", "multi_query_attention", False), ("chatglm", "pre_seq_len", 128)],
)
def test_variants_that_a_family_does_not_build_are_refused(case, field, value):
    settings = CollieConfig.from_pretrained(str(golden(case)))
    settings.model_config.__dict__[field] = value
    with pytest.raises(ConfigError, match=rf"{field}={value} in the config of model_type 'chatglm' is not supported"):
        CollieModelForCausalLM.from_pretrained(golden(case), config=settings)


def test_chatglm2s_matrices_have_the_padded_vocabulary():
    settings = CollieConfig.from_pretrained(str(golden("chatglm2")))
    settings.model_config.vocab_size = 250  # tokens of the tokenizer
    model = CollieModelForCausalLM.from_pretrained(golden("chatglm2"), config=settings)
    assert model.embed.weight.shape[0] == model.config.vocab_size == 259


def test_internlms_older_spelling_of_theta_is_read():
    settings = CollieConfig.from_pretrained(str(golden("internlm")))
    settings.model_config.rotary = {"base": 5000, "type": "dynamic"}
    model = CollieModelForCausalLM.from_pretrained(golden("internlm"), config=settings)
    assert model.rope.frequencies[1].item() == pytest.approx(5000 ** (-2 / 16))
    far = model.rope.span(0, 128, model.device).cos_B1SR
    assert not torch.allclose(far[..., :64, :], model.rope.span(0, 64, model.device).cos_B1SR)
    settings.model_config.rotary = {"base": 10000, "type": "origin"}
    same = CollieModelForCausalLM.from_pretrained(golden("internlm"), config=settings)
    with torch.no_grad():
        plain = CollieModelForCausalLM.from_pretrained(golden("internlm"))(IDS).logits
        assert torch.equal(same(IDS).logits, plain)


def test_building_takes_no_memory():
    model = build(LlamaForCausalLM, config(LlamaConfig(vocab_size=128256, num_hidden_layers=4)))
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) > 10**9
    assert not list(model.buffers())


def test_moss_has_its_standard_names_and_the_config_is_shared():
    settings = config(toy_moss_config())
    model = Moss003MoonForCausalLM.from_config(settings)
    assert isinstance(model.config, Moss003MoonConfig) and model.config is settings.model_config
    assert model.collie_config is settings
    assert (model.config.hidden_size, model.config.num_hidden_layers, settings.num_attention_heads) == (32, 2, 4)


def test_moss_heads_come_in_blocks_of_four():
    with pytest.raises(ConfigError, match=r"n_head=6 must be a multiple of 4"):
        Moss003MoonForCausalLM.from_config(config(toy_moss_config(n_head=6, n_embd=48)))


def test_dtype_argument_then_ds_config_then_checkpoint_then_float32():
    folder = golden("llama3")  # float32
    bf16 = {"bf16": {"enabled": True}}
    for expected, arguments, ds_config in (
        (torch.float32, {}, {}),
        (torch.bfloat16, {}, bf16),
        (torch.float16, {}, {"fp16": {"enabled": True}}),
        (torch.float32, {}, {"bf16": {"enabled": False}}),
        (torch.float32, {}, {"bf16": {"enabled": "auto"}}),
        (torch.float32, {}, {"bf16": "auto"}),
        (torch.float16, {"dtype": torch.float16}, bf16),
        (torch.float16, {"dtype": "fp16"}, bf16),
        (torch.bfloat16, {"torch_dtype": "torch.bfloat16"}, {}),
        (torch.bfloat16, {"dtype": "auto"}, bf16),
    ):
        settings = CollieConfig.from_pretrained(str(folder))
        settings.ds_config = ds_config
        model = CollieModelForCausalLM.from_pretrained(folder, config=settings, **arguments)
        assert {p.dtype for p in model.parameters()} == {expected} == {model.dtype}
    assert CollieModelForCausalLM.from_config(config()).dtype is torch.float32
    assert CollieModelForCausalLM.from_config(config(toy_llama_config(dtype="bfloat16"))).dtype is torch.bfloat16
    with pytest.raises(ConfigError, match=r"dtype='int8' is not a dtype for weights"):
        CollieModelForCausalLM.from_pretrained(folder, dtype="int8")


def test_dtype_of_the_folder_where_the_config_says_none(tmp_path):
    CollieModelForCausalLM.from_config(config(), dtype="bf16").save_pretrained(tmp_path)
    assert CollieModelForCausalLM.from_pretrained(tmp_path, config=config()).dtype is torch.bfloat16


def test_half_precision_runs_and_is_near():
    wide, half = (CollieModelForCausalLM.from_pretrained(golden("llama3"), dtype=d) for d in ("float32", "bfloat16"))
    with torch.no_grad():
        a, b = wide(IDS, labels=IDS), half(IDS, labels=IDS)
    assert b.logits.dtype is torch.bfloat16 and b.loss.dtype is torch.float32
    assert (a.logits - b.logits.float()).abs().max() < 0.03 * a.logits.abs().max()


def test_arguments_of_from_pretrained():
    model = CollieModelForCausalLM.from_pretrained(
        golden("llama3"), trust_remote_code=True, dropout=0.1, revision="main"
    )
    assert model.collie_config.dropout == 0.1 and not model.training
    with pytest.raises(ConfigError, match="unknown argument 'device_map'"):
        CollieModelForCausalLM.from_pretrained(golden("llama3"), config=config(), device_map="auto")
    with pytest.raises(CheckpointError, match="No folder"):
        CollieModelForCausalLM.from_pretrained("/no/such/folder", config=config())


def test_generation_config_of_the_folder_is_read(tmp_path):
    CollieModelForCausalLM.from_config(config()).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7], "top_k": 3, "do_sample": true}')
    model = CollieModelForCausalLM.from_pretrained(tmp_path)
    assert (model.generation_config.eos_token_id, model.generation_config.top_k) == ([2, 7], 3)


class Planless(LlamaForCausalLM):
    """A family of LLaMA's kind that has not said how it is split."""


def refusal(stage):
    """On one of two ranks: the sentence that a family without a plan gets under tp_size=2."""
    settings = config(tp_size=2, ds_config={"zero_optimization": {"stage": stage}})
    with pytest.raises(ParallelSizeError) as caught:
        Planless.from_config(settings)
    return str(caught.value)


@pytest.mark.parametrize("stage", [0, 3])
def test_families_without_a_plan_of_their_own_are_refused(stage):
    """ZeRO stage 3 is no advice where it is set."""
    for message in run_ranks(2, refusal, stage, timeout=60):
        assert message.startswith("tp_size=2: ") and "Planless has no plan for tensor parallelism" in message
        assert ("stage 3" in message) == (stage != 3)


def test_sizes_that_do_not_fit_the_world_are_said_first():
    with pytest.raises(ParallelSizeError, match=r"tp_size=2 × pp_size=1 = 2 does not divide the world of 1 ranks"):
        CollieModelForCausalLM.from_config(config(tp_size=2))
    with pytest.raises(ParallelSizeError, match=r"tp_size=1 × pp_size=5 = 5 does not divide the world of 1 ranks"):
        CollieModelForCausalLM.from_pretrained(golden("llama3"), config(pp_size=5))


def test_adapters_of_unknown_kinds_are_refused_not_ignored():
    settings = config(peft_config=SimpleNamespace(peft_type="LOHA", to_dict=lambda: {"peft_type": "LOHA"}))
    with pytest.raises(ConfigError, match=r"peft_type='LOHA' is not there for CoLLiE's own models. Use one of LORA"):
        CollieModelForCausalLM.from_config(settings)


def test_the_familys_own_initialisation():
    """N(0, initializer_range²) for matrices, 1 for norms, 0 for biases; with no two parameters alike."""
    model = CollieModelForCausalLM.from_config(config(toy_moss_config(n_embd=64, initializer_range=0.05)))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name
        else:
            assert parameter.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name
    first, second = (model.layers[i].attention.qkv.weight for i in "01")
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("method", "params", "std"),
    [
        ("normal", {"std": 0.3}, 0.3),
        ("uniform", {"a": -0.6, "b": 0.6}, 0.6 / 3**0.5),
        ("xavier_normal", {"gain": 2.0}, 2 * (2 / 64) ** 0.5),
        ("xavier_uniform", None, (2 / 64) ** 0.5),
        ("kaiming_normal", {"nonlinearity": "linear"}, 32**-0.5),
        ("kaiming_uniform", {"nonlinearity": "linear"}, 32**-0.5),
        ("orthogonal", None, 32**-0.5),
    ],
)
def test_other_initialisations(method, params, std):
    settings = config(initization_method=method, initization_method_params=params)
    model = CollieModelForCausalLM.from_config(settings)
    assert model.layers["0"].attention.q.weight.std().item() == pytest.approx(std, rel=0.1)
    assert model.norm.weight.eq(1).all()


def test_initialisation_depends_on_seed_and_name_alone():
    """A model of three layers has the same first two as one of two; another seed has others."""
    two, three, other = (
        CollieModelForCausalLM.from_config(config(toy_llama_config(num_hidden_layers=n), seed=seed)).state_dict()
        for n, seed in ((2, 1), (3, 1), (2, 2))
    )
    assert all(torch.equal(two[name], three[name]) for name in two)
    assert not torch.equal(two["embed.weight"], other["embed.weight"])


def test_parameters_that_do_not_suit_the_method_are_refused():
    settings = config(initization_method="normal", initization_method_params={"gain": 2.0})
    with pytest.raises(ConfigError, match=r"initization_method_params=\{'gain': 2.0\} does not suit .*'normal'"):
        CollieModelForCausalLM.from_config(settings)


def test_weights_are_replaced_in_place_or_not_at_all(tmp_path):
    model, other = (CollieModelForCausalLM.from_config(config(seed=seed)) for seed in (1, 2))
    other.save_pretrained(tmp_path / "other")
    parameter = model.embed.weight
    model.load_weights(tmp_path / "other")
    assert model.embed.weight is parameter and torch.equal(parameter, other.embed.weight)
    CollieModelForCausalLM.from_config(config(toy_llama_config(num_hidden_layers=1))).save_pretrained(
        tmp_path / "small"
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"has no tensor 'model.layers.1"):
        model.load_weights(tmp_path / "small")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_survives_pickling():
    model = CollieModelForCausalLM.from_config(config())
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(model))(IDS).logits, model(IDS).logits)
