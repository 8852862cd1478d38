"""Trainings in PEFT's wrapper, resumed to the bit: prompts before our models, and adapters of transformers' models."""

import peft
import pytest
import torch
from resuming import Losses
from toy_training import make_config, make_model, rows
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

from collie.controller.trainer import Trainer
from collie.parallel import setup_distribution
from collie.testing import run_ranks, toy_llama_config

LORA = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
ENCODER = peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16, task_type="CAUSAL_LM")


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a model of transformers."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(toy_llama_config(initializer_range=0.3)).save_pretrained(folder)
    return folder


def train(asked, callback, base=None, resume=None, quantization=None, **fields):
    """Train an adapter, of our model or of transformers' in `base`; return the losses."""
    config = make_config(peft_config=asked if base is None else None, **fields)
    setup_distribution(config)
    if base is None:
        model = make_model(config)
    else:
        torch.manual_seed(0)
        plain = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization)
        model = peft.get_peft_model(plain, asked)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=callback)
    trainer.train(resume=resume)
    return callback.losses


def assert_goes_on(tmp_path, ranks, asked, **arguments):
    def run():
        alone = train(asked, Losses(1, tmp_path / "c"), **arguments)
        return alone, train(asked, Losses(), resume=tmp_path / "c", **arguments)

    for alone, resumed in run_ranks(ranks, run):
        assert resumed == {step: loss for step, loss in alone.items() if step > 1} and len(resumed) > 1
    assert not list((tmp_path / "c").glob("*.safetensors")), "the base model is where it was"


@pytest.mark.parametrize("asked", [peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), ENCODER])
@pytest.mark.parametrize(("ranks", "fields"), [(1, {}), (2, {"stage": 3, "dp_size": 2})])
def test_prompts_of_our_models(tmp_path, asked, ranks, fields):
    assert_goes_on(tmp_path, ranks, asked, micro=2 // ranks, **fields)


@pytest.mark.parametrize(("ranks", "fields"), [(1, {}), (2, {"stage": 3, "dp_size": 2})])
@pytest.mark.parametrize("asked", [LORA, ENCODER])
def test_models_of_transformers(tmp_path, base, asked, ranks, fields):
    assert_goes_on(tmp_path, ranks, asked, base=base, micro=2 // ranks, **fields)


@pytest.mark.parametrize(
    "quantization",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    ],
)
def test_quantized_models_of_transformers(tmp_path, base, quantization):
    pytest.importorskip("bitsandbytes")
    assert_goes_on(tmp_path, 1, LORA, base=base, micro=2, quantization=BitsAndBytesConfig(**quantization))
