"""Adapters to and from plain PEFT on transformers' models, in every layout: equal logits both ways."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, CodeGenConfig, LlamaForCausalLM, Qwen3Config

from collie.adapters import add_adapter, load_peft, merge, save_peft
from collie.config import CollieConfig
from collie.interfaces import CheckpointError, ConfigError, ParallelSizeError
from collie.models import CollieModelForCausalLM
from collie.parallel import cut_of
from collie.testing import golden, toy_config, toy_llama_config, toy_moss_config

peft = pytest.importorskip("peft")
pytest.importorskip("deepspeed")

IDS = torch.tensor([[5, 9, 13, 40, 41, 7, 22, 81], [1, 2, 3, 4, 5, 6, 7, 8]])
FAMILIES = {
    "llama": lambda: toy_llama_config(initializer_range=0.2),
    "qwen3": lambda: toy_config(Qwen3Config, initializer_range=0.2, head_dim=12),
    "codegen": lambda: CodeGenConfig(
        vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, initializer_range=0.2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip
KINDS = {
    "lora": {"r": 4, "target_modules": "all-linear"},
    "rslora": {
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {r"0.*(q_proj|qkv_proj)": 6},
        "modules_to_save": ["lm_head"],
    },
    "dora": {"r": 4, "use_dora": True, "target_modules": "all-linear"},
}
LAYOUTS = [{"tp_size": 2}, {"pp_size": 2}, {"dp_size": 2, "ds_config": {"zero_optimization": {"stage": 3}}}]


@pytest.fixture(autouse=True)
def fresh_ranks():
    """No process group is left behind, so that the next test can fork ranks."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def settings(folder, **fields):
    config = CollieConfig.from_pretrained(str(folder))
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request, tmp_path_factory):
    """A transformers model's folder, and by kind an adapter of it that PEFT saved and the logits that PEFT gives."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(FAMILIES[request.param]()).save_pretrained(folder / "model")
    adapters = {}
    for kind, arguments in KINDS.items():
        base = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager")
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **arguments))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                factor = 1 + 0.5 * torch.rand_like(parameter) if "magnitude" in name else 1
                parameter.data = parameter.data * factor + 0.1 * torch.randn_like(parameter) * ("magnitude" not in name)
        model.save_pretrained(folder / kind)
        with torch.no_grad():
            adapters[kind] = model.eval()(IDS).logits
    return folder, adapters


def round_trip(folder, kinds, fields):
    """Load each of PEFT's adapters, save it again, merge it, and save that: the logits before and after merging."""
    results = []
    for kind in kinds:
        config = settings(folder / "model", **fields)
        model = CollieModelForCausalLM.from_pretrained(folder / "model", config)
        model = load_peft(model, config, folder / kind)
        with torch.no_grad():
            logits = model(IDS).logits
            save_peft(model, folder / f"{kind}-ours")
            merged = merge(model)(IDS).logits
        model.save_pretrained(folder / f"{kind}-merged")
        results.append((logits, merged))
    return results


@pytest.mark.parametrize("fields", [{}, *LAYOUTS], ids=["one", "tp2", "pp2", "zero3"])
def test_an_adapter_of_plain_peft_comes_in_and_goes_out_again(plain, ranks, fields):
    """Loaded, it gives PEFT's logits; saved, PEFT's file; merged, the same logits, which transformers gives as well."""
    folder, expected = plain
    for results in ranks(2 if fields else 1, round_trip, folder, list(expected), fields):
        for (logits, merged), reference in zip(results, expected.values(), strict=True):
            assert_close(logits, reference, atol=2e-5, rtol=0)
            assert_close(merged, reference, atol=2e-5, rtol=0)
    for kind, reference in expected.items():
        theirs, ours = (load_file(folder / name / "adapter_model.safetensors") for name in (kind, f"{kind}-ours"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        base = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager")
        model = peft.PeftModel.from_pretrained(base, folder / f"{kind}-ours")
        alone = AutoModelForCausalLM.from_pretrained(folder / f"{kind}-merged", attn_implementation="eager")
        with torch.no_grad():
            assert_close(model(IDS).logits, reference, atol=1e-6, rtol=0)
            assert_close(alone(IDS).logits, reference, atol=2e-5, rtol=0)


def first_values(fields, kind, folder):
    """What a fresh adapter consists of."""
    config = CollieConfig(model_config=toy_moss_config(initializer_range=0.2))
    for name, value in fields.items():
        setattr(config, name, value)
    config.peft_config = peft.LoraConfig(**KINDS[kind])
    save_peft(CollieModelForCausalLM.from_config(config), folder)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_fresh_adapter_is_the_same_in_every_layout(ranks, tmp_path, kind):
    """A is drawn by seed and name, B is zero, magnitudes are the weights' row norms."""
    ranks(1, first_values, {}, kind, tmp_path)
    expected = load_file(tmp_path / "adapter_model.safetensors")
    assert all(("lora_B" in name) == (not value.any()) for name, value in expected.items())
    for fields in LAYOUTS:
        ranks(2, first_values, fields, kind, tmp_path)
        found = load_file(tmp_path / "adapter_model.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, atol=1e-6 if "magnitude" in name else 0.0, rtol=0)


def test_names_are_the_checkpoints_or_ours_and_by_default_pefts():
    def chosen(arguments, model_config=None):
        config = CollieConfig(model_config=model_config or toy_llama_config())
        config.peft_config = peft.LoraConfig(**arguments)
        model = CollieModelForCausalLM.from_config(config)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        return {name.partition(".lora_")[0] for name in trained}

    q_and_v = {f"layers.{i}.attention.{name}" for i in range(2) for name in "qv"}
    assert chosen({}) == chosen({"target_modules": ["q_proj", "v_proj"]}) == q_and_v
    assert chosen({"target_modules": ["attention.q", "v"]}) == q_and_v
    assert chosen({"target_modules": r"layers\.\d\.attention\.(q|v)"}) == q_and_v
    assert chosen({"target_modules": r".*\.self_attn\.(q|v)_proj"}) == q_and_v
    assert chosen({"layers_to_transform": [1]}) == {name for name in q_and_v if ".1." in name}
    assert chosen({"exclude_modules": ["v_proj"]}) == {name for name in q_and_v if name.endswith("q")}
    assert len(chosen({"target_modules": "all-linear"})) == 14
    assert chosen({}, toy_moss_config()) == {f"layers.{i}.attention.qkv" for i in range(2)}
    assert chosen({"modules_to_save": ["lm_head", "model.norm"]}) == q_and_v | {"head.weight", "norm.weight"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"target_modules": ["q_prj"]}, r"'q_prj', which no module of this model is called. Use .*q_proj.* or ours"),
        ({"target_modules": ["lm_head"]}, r"target_modules names head: .* Put it into modules_to_save"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights='pissa' changes or reads whole weights"),
        ({"bias": "all"}, r"bias='all' in peft_config is not there for CoLLiE's own models"),
        ({"use_dora": True, "init_lora_weights": False}, r"use_dora=True: magnitudes begin"),
    ],
)
def test_what_an_adapter_cannot_do_is_said(arguments, sentence):
    config = CollieConfig(model_config=toy_llama_config(), peft_config=peft.LoraConfig(**arguments))
    with pytest.raises(ConfigError, match=sentence):
        CollieModelForCausalLM.from_config(config)


def test_a_tied_head_is_not_trained_apart_from_its_embedding():
    config = CollieConfig(model_config=toy_llama_config(tie_word_embeddings=True))
    config.peft_config = peft.LoraConfig(modules_to_save=["lm_head"])
    with pytest.raises(ConfigError, match=r"embedding and head of this model are one weight"):
        CollieModelForCausalLM.from_config(config)


def test_stages_without_anything_to_train_are_refused(ranks):
    def make():
        config = CollieConfig(model_config=toy_llama_config(), pp_size=2)
        config.peft_config = peft.LoraConfig(layers_to_transform=[0])
        with pytest.raises(ParallelSizeError, match="changes nothing in the layers of pipeline rank 1"):
            CollieModelForCausalLM.from_config(config)

    ranks(2, make)


def test_ia3_is_pefts_too_and_refused_in_parts(ranks, tmp_path):
    torch.manual_seed(1)
    model = LlamaForCausalLM(toy_llama_config(initializer_range=0.2))
    model.save_pretrained(tmp_path / "model")
    theirs = peft.get_peft_model(model, peft.IA3Config(task_type="CAUSAL_LM"))
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path / "ia3")
    with torch.no_grad():
        expected = theirs.eval()(IDS).logits

    def loaded(stage):
        config = settings(tmp_path / "model", ds_config={"zero_optimization": {"stage": stage}})
        ours = load_peft(CollieModelForCausalLM.from_pretrained(tmp_path / "model", config), config, tmp_path / "ia3")
        with torch.no_grad():
            return ours(IDS).logits, merge(ours)(IDS).logits

    for stage in (0, 3):
        for result in ranks(2, loaded, stage):
            for logits in result:
                assert_close(logits, expected, atol=2e-5, rtol=0)

    def split():
        config = CollieConfig(model_config=toy_llama_config(), tp_size=2, peft_config=peft.IA3Config())
        with pytest.raises(ParallelSizeError, match=r"peft_type='IA3' with tp_size=2: .* use LoRA"):
            CollieModelForCausalLM.from_config(config)

    ranks(2, split)


def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    config = CollieConfig(model_config=toy_llama_config())
    config.peft_config = peft.LoraConfig(r=4, init_lora_weights=False)
    model = CollieModelForCausalLM.from_config(config)
    save_peft(model, tmp_path)
    before = model(IDS).logits
    other = CollieConfig(model_config=toy_llama_config(), peft_config=peft.LoraConfig(r=2))
    with pytest.raises(CheckpointError, match=r"q_proj.lora_A.weight' has shape \(4, 32\) .* with shape \(2, 32\)"):
        load_peft(CollieModelForCausalLM.from_config(other), other, tmp_path)
    with pytest.raises(ConfigError, match=r"save_pretrained.*the model has an adapter"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="has the adapter 'default' already"):
        add_adapter(model, config.peft_config)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        load_peft(merge(CollieModelForCausalLM.from_config(other)), other, tmp_path / "none")
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["target_modules"] == ["q_proj", "v_proj"] and saved["inference_mode"] is True
    (tmp_path / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_peft(model, config, tmp_path)
    assert torch.equal(model(IDS).logits, before)


def test_every_family_takes_an_adapter():
    """One that transformers lacks is saved under its checkpoint's names."""
    for case in ("chatglm_shallow", "chatglm2", "internlm", "internlm2", "mistral_swa", "moss7b_via_llama", "qwen2"):
        config = CollieConfig.from_pretrained(str(golden(case)))
        config.peft_config = peft.LoraConfig(r=2, init_lora_weights=False)
        model = CollieModelForCausalLM.from_pretrained(golden(case), config)
        ids = torch.arange(3, 11).view(1, 8)
        adapted = model(ids).logits
        assert_close(merge(model)(ids).logits, adapted, atol=1e-4, rtol=0)


PROMPTS = [
    peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
]


@pytest.mark.parametrize("asked", PROMPTS, ids=lambda asked: asked.peft_type.value)
def test_prompts_of_plain_peft_come_in_and_go_out_again(ranks, tmp_path, asked):
    """Under ZeRO-3, too, which splits them; 4 query heads share 2 of keys and values, as a prefix must know."""
    torch.manual_seed(1)
    base = LlamaForCausalLM(toy_llama_config(initializer_range=0.2, use_cache=False))
    base.save_pretrained(tmp_path / "model")
    theirs = peft.get_peft_model(base, asked).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    mask = torch.ones_like(IDS)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = theirs(IDS, attention_mask=mask).logits

    def loaded(stage):
        config = settings(tmp_path / "model", ds_config={"zero_optimization": {"stage": stage}})
        ours = CollieModelForCausalLM.from_pretrained(tmp_path / "model", config)
        ours = load_peft(ours, config, tmp_path / "theirs")
        save_peft(ours, tmp_path / "ours")
        with torch.no_grad():
            return ours(IDS, attention_mask=mask).logits

    for stage in (0, 3):
        for logits in ranks(2, loaded, stage):
            assert_close(logits[mask.sum(1) == 8], expected[mask.sum(1) == 8], atol=2e-5, rtol=0)
            assert_close(logits[1, :-2], expected[1, :-2], atol=2e-5, rtol=0)
        files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours")]
        assert files[0].keys() == files[1].keys() and torch.equal(*(file["prompt_embeddings"] for file in files))


def test_what_prompts_cannot_do_is_said(ranks, tmp_path):
    def refused(case, asked, error, sentence, **fields):
        config = settings(golden(case), peft_config=asked, **fields)
        with pytest.raises(error, match=sentence):
            CollieModelForCausalLM.from_pretrained(golden(case), config)

    prompt, prefix, encoder = PROMPTS
    ranks(2, lambda: refused("llama3", prefix, ParallelSizeError, "PREFIX_TUNING' with pp_size=2", pp_size=2))
    refused("chatglm_shallow", prompt, ConfigError, "ChatGLMForCausalLM finds positions .* in the tokens.* Use LoRA")
    config = settings(golden("llama3"), peft_config=encoder)
    save_peft(CollieModelForCausalLM.from_pretrained(golden("llama3"), config), tmp_path)
    other = settings(golden("llama3"))
    with pytest.raises(ConfigError, match="of P_TUNING PEFT saves the prompts, and not the encoder"):
        load_peft(CollieModelForCausalLM.from_pretrained(golden("llama3"), other), other, tmp_path, is_trainable=True)


@pytest.mark.parametrize("sequence", [False, True])
def test_dropout_leaves_what_ranks_hold_alike_alike(ranks, sequence):
    """Of a whole input the ranks drop the same elements, of parts others; replicated A and B get equal gradients."""

    def gradients():
        config = CollieConfig(model_config=toy_llama_config(initializer_range=0.2), tp_size=2, checkpointing=False)
        config.sequence_parallel = sequence
        config.peft_config = peft.LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5
        )
        model = CollieModelForCausalLM.from_config(config).train()
        seen = {}

        def note(name, given, result):
            seen[name] = (given[0] != 0) & (result == 0)

        for name in ("q", "out"):
            dropout = model.layers["0"].attention.get_submodule(name).lora_dropout["default"]
            dropout.register_forward_hook(lambda _, given, result, name=name: note(name, given, result))
        model(IDS, labels=IDS).loss.backward()
        kept = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and cut_of(p) is None}
        return seen, kept

    (seen, kept), (others, theirs) = ranks(2, gradients)
    assert torch.equal(seen["q"], others["q"]) and not torch.equal(seen["out"], others["out"])
    assert 0.4 < seen["q"].float().mean() < 0.6
    assert kept and all(torch.equal(grad, theirs[name]) and grad.any() for name, grad in kept.items())
