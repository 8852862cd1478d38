"""Weights in 8 and 4 bits, with an adapter around them."""

import pytest
import torch
from torch.testing import assert_close
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from collie.adapters import load_peft, merge, save_peft
from collie.config import CollieConfig
from collie.interfaces import ConfigError, ParallelSizeError
from collie.models import CollieModelForCausalLM, is_quantized, keep_trainable
from collie.testing import toy_llama_config, toy_moss_config

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")
pytest.importorskip("deepspeed")

IDS = torch.tensor([[5, 9, 13, 40, 41, 7, 22, 81], [1, 2, 3, 4, 5, 6, 7, 8]])
SIZES = {"initializer_range": 0.2, "hidden_size": 64, "intermediate_size": 128}
KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(autouse=True)
def fresh_ranks():
    """No process group is left behind, so that the next test can fork ranks."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def settings(kind="nf4", **fields):
    config = CollieConfig(model_config=toy_llama_config(**SIZES), checkpointing=False)
    config.quantization_config = BitsAndBytesConfig(**KINDS[kind])
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_weights_are_those_that_transformers_makes(tmp_path, kind):
    """The same logits as of its model, quantized by the same config; and a head in full."""
    torch.manual_seed(1)
    LlamaForCausalLM(toy_llama_config(**SIZES)).save_pretrained(tmp_path)
    theirs = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**KINDS[kind]), attn_implementation="eager"
    )
    ours = CollieModelForCausalLM.from_pretrained(tmp_path, settings(kind))
    plain = CollieModelForCausalLM.from_pretrained(tmp_path, CollieConfig(model_config=toy_llama_config(**SIZES)))
    dtype = torch.int8 if kind == "int8" else torch.uint8
    assert ours.layers["0"].attention.q.weight.dtype is dtype and ours.head.weight.dtype is torch.float32
    with torch.no_grad():
        logits = ours(IDS).logits
        assert_close(logits, theirs(IDS).logits, atol=1e-4, rtol=0)
        assert (logits - plain(IDS).logits).abs().max() > 1e-3


def test_an_eval_forward_before_training_does_not_stop_gradients(monkeypatch):
    """On CPUs with AVX512-BF16 it packs 4-bit weights for a kernel without a gradient: below it nothing learns."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    config = settings(peft_config=peft.LoraConfig(r=4, init_lora_weights=False))
    model = CollieModelForCausalLM.from_config(config)
    fresh = [gradient.clone() for gradient in gradients(model)]
    with torch.no_grad():
        model.eval()(IDS)
    after = gradients(model)
    assert all(torch.equal(one, two) for one, two in zip(fresh, after, strict=True)) and all(g.any() for g in after)


def gradients(model):
    model.zero_grad()
    model.train()(IDS, labels=IDS).loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def test_maps_that_were_packed_already_are_unpacked():
    """Such is a model of transformers that ran in evaluation mode before the Trainer saw it."""
    map_ = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32).to("cpu")
    x = torch.randn(3, 64)
    expected = map_(x)
    weight = map_.weight
    weight.data, weight.quant_state = bitsandbytes.functional._convert_weight_packed_for_cpu(
        weight.data, weight.quant_state
    )
    keep_trainable(map_)
    x.requires_grad_()
    y = map_(x)
    y.sum().backward()
    assert_close(y, expected, atol=0.05, rtol=0)  # packing has rounded the blocks' scales to bfloat16
    assert x.grad.any()


def test_adapters_of_quantized_models_fit_plain_ones(ranks, tmp_path):
    """Stages and dp ranks, too; each quantizes its own."""

    def made(**fields):
        config = settings(peft_config=peft.LoraConfig(r=4, init_lora_weights=False), **fields)
        model = CollieModelForCausalLM.from_config(config)
        save_peft(model, tmp_path)
        with torch.no_grad():
            return model(IDS).logits

    [expected] = ranks(1, made)
    for fields in ({"pp_size": 2}, {"dp_size": 2, "ds_config": {"zero_optimization": {"stage": 2}}}):
        for logits in ranks(2, lambda fields=fields: made(**fields)):
            assert_close(logits, expected, atol=1e-5, rtol=0)
    config = CollieConfig(model_config=toy_llama_config(**SIZES))
    merged = merge(load_peft(CollieModelForCausalLM.from_config(config), config, tmp_path))
    with torch.no_grad():
        assert 1e-4 < (merged(IDS).logits - expected).abs().mean() < expected.abs().mean()


def test_what_quantized_weights_cannot_do_is_said(ranks, tmp_path):
    def split():
        with pytest.raises(ParallelSizeError, match=r"quantization_config with tp_size=2: .* Set tp_size to 1"):
            CollieModelForCausalLM.from_config(settings(tp_size=2))

    ranks(2, split)
    for fields, sentence in (
        ({"ds_config": {"zero_optimization": {"stage": 3}}}, "ZeRO stage 3: packed weights .* Use stage 2"),
        ({"peft_config": peft.LoraConfig(use_dora=True)}, "magnitudes are of whole rows"),
        ({"peft_config": peft.LoraConfig(modules_to_save=["o_proj"])}, r"attention.out, which is quantized"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            CollieModelForCausalLM.from_config(settings(**fields))
    config = settings(peft_config=peft.LoraConfig())
    config.quantization_config.llm_int8_skip_modules = ["o_proj"]
    model = CollieModelForCausalLM.from_config(config)
    assert is_quantized(model) and model.layers["0"].attention.out.weight.is_floating_point()
    for work in (merge, lambda model: model.save_pretrained(tmp_path), lambda model: model.load_weights(tmp_path)):
        with pytest.raises(ConfigError, match="weights are quantized"):
            work(model)


def test_fused_families_are_quantized_too():
    config = settings(model_config=toy_moss_config(initializer_range=0.2, n_embd=64))
    model = CollieModelForCausalLM.from_config(config)
    assert is_quantized(model) and model.layers["0"].attention.qkv.weight.dtype is torch.uint8
    assert torch.isfinite(model(IDS).logits).all()
