"""The Trainer on adapters: in every layout the losses, the norms and the adapter are those of one process."""

import pytest
import torch
from safetensors.torch import load_file
from toy_training import make_config, rows
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

from collie.adapters import load_peft, merge, save_peft
from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.trainer import Trainer
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.optim import Lomo
from collie.testing import golden, run_ranks, toy_llama_config, toy_moss_config

peft = pytest.importorskip("peft")

IDS = torch.tensor([[5, 9, 13, 40, 41, 7, 22, 81]])
KINDS = {
    "lora": {"r": 4, "target_modules": "all-linear", "init_lora_weights": False},
    "dora": {"r": 4, "target_modules": "all-linear", "use_dora": True, "modules_to_save": ["head"]},
}


class Losses(Callback):
    """Keeps each step's loss."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, loss):
        self.seen.append(float(loss))


def described(family):
    if family == "chatglm2":  # 4 heads over 2 groups, in fused maps
        found = CollieConfig.from_pretrained(str(golden("chatglm2"))).model_config
        found.initializer_range = 0.1
        return found
    if family == "moss":
        return toy_moss_config(initializer_range=0.2, n_layer=4)
    return toy_llama_config(initializer_range=0.2, num_hidden_layers=4)


def train(folder, family="llama", kind="lora", optimizer="sgd", lr=0.1, stage=0, clip=0.0, dropout=0.0, **layout):
    """Train two epochs; return the losses, and the logits with the adapter and with the adapter merged."""
    ds_config = {"zero_optimization": {"stage": stage}, "gradient_clipping": 0.0 if optimizer == "lomo" else clip}
    dp = layout.get("dp_size", 1)
    config = make_config(micro=2 // dp, accumulate=2 if optimizer == "sgd" else 1, ds_config=ds_config, **layout)
    config.train_epochs, config.model_config = 2, described(family)
    config.peft_config = peft.LoraConfig(**KINDS[kind], lora_dropout=dropout)
    model = CollieModelForCausalLM.from_config(config)
    made = Lomo(model, lr, clip or None) if optimizer == "lomo" else torch.optim.SGD(model.parameters(), lr)
    losses = Losses()
    trainer = Trainer(model, config, optimizer=made, train_dataset=rows(), callbacks=[losses])
    trainer.train()
    trainer.save_peft(folder)
    with torch.no_grad():
        adapted = model.eval()(IDS).logits
        merged = merge(model)(IDS).logits
    return losses.seen, adapted, merged


CASES = [
    *({"family": family, "tp_size": 2} for family in ("llama", "moss", "chatglm2")),
    {"family": "chatglm2", "tp_size": 4},  # each group's keys and values are on two ranks, in a map of their own
    {"family": "moss", "kind": "dora", "tp_size": 2, "sequence_parallel": True},
    {"family": "chatglm2", "kind": "dora", "tp_size": 4, "optimizer": "lomo"},
    {"family": "llama", "pp_size": 2, "clip": 0.5},
    {"family": "moss", "kind": "dora", "pp_size": 2, "optimizer": "lomo", "clip": 0.5},
    {"kind": "dora", "tp_size": 2, "dp_size": 2, "stage": 3, "clip": 0.5},
    {"kind": "dora", "dp_size": 2, "stage": 3, "optimizer": "lomo", "clip": 0.5},
    {"tp_size": 2, "pp_size": 2, "optimizer": "lomo", "clip": 0.5},
    *({"dp_size": 2, "stage": stage, "clip": 0.5} for stage in (0, 1, 2, 3)),
]
_REFERENCES = {}


def reference(case, tmp_path_factory):
    """What one process makes of a case, computed once for all layouts."""
    alone = {name: value for name, value in case.items() if name in ("family", "kind", "optimizer", "clip")}
    key = tuple(sorted(alone.items()))
    if key not in _REFERENCES:
        folder = tmp_path_factory.mktemp("one")
        [result] = run_ranks(1, lambda: train(folder, **alone))
        _REFERENCES[key] = result, load_file(folder / "adapter_model.safetensors")
    return _REFERENCES[key]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(f"{k}={v}" for k, v in case.items()))
def test_an_adapter_trains_alike_in_every_layout(tmp_path, tmp_path_factory, case):
    """Clipped gradients hold the norm: it counts every part once."""
    (losses, logits, _), adapter = reference(case, tmp_path_factory)
    epoch = len(losses) // 2
    assert sum(losses[epoch:]) < sum(losses[:epoch])
    ranks = case.get("tp_size", 1) * case.get("pp_size", 1) * case.get("dp_size", 1)
    for ours in run_ranks(ranks, lambda: train(tmp_path, **case), timeout=100):
        assert ours[0] == pytest.approx(losses, abs=2e-5)
        torch.testing.assert_close(ours[1], logits, atol=1e-3, rtol=0)
        torch.testing.assert_close(ours[2], ours[1], atol=1e-4, rtol=0)
    trained = load_file(tmp_path / "adapter_model.safetensors")
    assert trained.keys() == adapter.keys()
    for name, value in adapter.items():
        torch.testing.assert_close(
            trained[name], value, atol=2e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_model_without_the_adapter_that_is_asked_for_is_not_trained_whole():
    def make():
        config = make_config()
        model = CollieModelForCausalLM.from_config(config)
        config.peft_config = peft.LoraConfig()
        with pytest.raises(ConfigError, match=r"peft_config asks for LORA, and the model has no adapter"):
            Trainer(model, config, optimizer=torch.optim.SGD(model.parameters(), 0.1), train_dataset=rows())

    run_ranks(1, make)


def test_an_adapter_trained_in_one_layout_goes_on_in_another(tmp_path):
    """load_peft replaces the values, also in the optimizer's copies of them, and training starts from there."""

    def again(tp):
        config = make_config(micro=2, tp_size=tp, ds_config={"bf16": {"enabled": True}})
        config.model_config = described("moss")
        config.peft_config = peft.LoraConfig(**KINDS["dora"])
        model = CollieModelForCausalLM.from_config(config)
        trainer = Trainer(model, config, optimizer=torch.optim.SGD(model.parameters(), 0.0), train_dataset=rows())
        trainer.load_peft(tmp_path)
        trainer.train()
        trainer.save_peft(tmp_path / str(tp))

    run_ranks(1, lambda: train(tmp_path, "moss", "dora"))
    expected = load_file(tmp_path / "adapter_model.safetensors")
    run_ranks(2, lambda: again(2))
    found = load_file(tmp_path / "2" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in expected.items())


def test_a_model_of_transformers_in_pefts_wrapper_trains_and_is_saved(tmp_path):
    """Under ZeRO-3, too, where saving gathers what was trained."""

    def wrapped(stage):
        config = make_config(micro=2 if stage else 4, ds_config={"zero_optimization": {"stage": stage}})
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(toy_llama_config(initializer_range=0.2))
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, init_lora_weights=False, modules_to_save=["lm_head"]))
        trainer = Trainer(model, config, optimizer=torch.optim.SGD(model.parameters(), 0.1), train_dataset=rows())
        trainer.train()
        trainer.save_peft(tmp_path / str(stage))

    run_ranks(1, lambda: wrapped(0))
    run_ranks(2, lambda: wrapped(3))
    one, two = (load_file(tmp_path / stage / "adapter_model.safetensors") for stage in ("0", "3"))
    assert one.keys() == two.keys() and any("lm_head" in name for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0)


SMALL = {
    "ia3": lambda: peft.IA3Config(),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
    "encoder": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", SMALL)
def test_prompts_and_scales_train_alike_under_every_zero_stage(tmp_path, kind):
    def small(stage, dp):
        config = make_config(micro=4 // dp, dp_size=dp, ds_config={"zero_optimization": {"stage": stage}})
        config.peft_config, config.train_epochs = SMALL[kind](), 2
        model = CollieModelForCausalLM.from_config(config)
        losses = Losses()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.02)
        trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=[losses])
        trainer.save_peft(tmp_path / "fresh")
        trainer.train()
        trainer.save_peft(tmp_path / str(stage))
        return losses.seen

    # the encoder's ReLUs make much of rounding: one process that accumulates differs from one that does not as much
    tolerance = 1e-3 if kind == "encoder" else 2e-5
    [losses] = run_ranks(1, lambda: small(0, 1))
    expected = load_file(tmp_path / "0" / "adapter_model.safetensors")
    fresh = load_file(tmp_path / "fresh" / "adapter_model.safetensors")
    assert all((value - fresh[name]).abs().max() > 1e-4 for name, value in expected.items())
    for stage in (1, 2, 3):
        for ours in run_ranks(2, lambda: small(stage, 2)):  # noqa: B023  # it runs here
            assert ours == pytest.approx(losses, abs=tolerance)
        for name, value in load_file(tmp_path / str(stage) / "adapter_model.safetensors").items():
            torch.testing.assert_close(value, expected[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "transformers"])
def test_an_adapter_trains_around_quantized_weights(tmp_path, kind, ours):
    """Alike on one rank and on two, though a forward in evaluation mode came first; only the adapter changes."""
    pytest.importorskip("bitsandbytes")

    def quantized(dp, stage):
        asked = BitsAndBytesConfig(**{kind: True}, bnb_4bit_quant_type="nf4")
        config = make_config(micro=4 // dp, dp_size=dp, ds_config={"zero_optimization": {"stage": stage}})
        lora = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights="gaussian")
        if ours:
            config.quantization_config, config.peft_config = asked, lora
            model = CollieModelForCausalLM.from_pretrained(tmp_path / "model", config)
        else:
            torch.manual_seed(0)
            base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=asked)
            model = peft.get_peft_model(base, lora)
        with torch.no_grad():
            model.eval()(IDS)
        losses = Losses()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        trainer = Trainer(model, config, optimizer=optimizer, train_dataset=rows(), callbacks=[losses])
        trainer.train()
        trainer.save_peft(tmp_path / "adapter")
        return losses.seen

    torch.manual_seed(2)
    LlamaForCausalLM(toy_llama_config(initializer_range=0.2)).save_pretrained(tmp_path / "model")
    [losses] = run_ranks(1, lambda: quantized(1, 0))
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(value.any() for value in adapter.values())  # B began as zero, also in the first layer
    for seen in run_ranks(2, lambda: quantized(2, 2)):
        assert seen == pytest.approx(losses, abs=2e-3 if kind == "load_in_8bit" else 2e-5)  # int8 rounds activations


def test_quantized_weights_alone_are_not_trained(tmp_path):
    pytest.importorskip("bitsandbytes")

    def make():
        config = make_config()
        config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
        model = CollieModelForCausalLM.from_config(config)
        with pytest.raises(ConfigError, match="quantized weights are not trained, and the model has no adapter"):
            Trainer(model, config, optimizer=torch.optim.SGD(model.head.parameters(), 0.1), train_dataset=rows())

    run_ranks(1, make)


def test_adalora_deals_ranks_out_as_peft_does(tmp_path):
    """Its losses' gradients, its importance and its masks, in six steps over the same rows; under every ZeRO stage."""
    asked = peft.AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=2, total_step=6, tinit=1, tfinal=1, orth_reg_weight=0.1
    )

    def theirs():
        base = LlamaForCausalLM.from_pretrained(tmp_path / "model")
        model = peft.PeftModel.from_pretrained(base, tmp_path / "fresh", is_trainable=True)
        model.base_model.rankallocator.reset_ipt()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.2)
        ids = torch.stack([torch.tensor(row["input_ids"]) for row in same])
        for step in range(6):
            model.train()(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            model.base_model.update_and_allocate(step)
            optimizer.zero_grad()
        return {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}

    def ours(stage, dp, accumulate):
        config = make_config(micro=4 // dp // accumulate, accumulate=accumulate, dp_size=dp)
        config.ds_config = {"zero_optimization": {"stage": stage}}
        config.train_epochs, config.peft_config = 6, asked
        model = CollieModelForCausalLM.from_pretrained(tmp_path / "model", config)
        if (tmp_path / "fresh").exists():
            load_peft(model, config, tmp_path / "fresh")
        else:
            for name, parameter in model.named_parameters():  # Λ that is zero has no importance
                if "lora_E" in name:
                    parameter.data.normal_(std=3.0)
            save_peft(model, tmp_path / "fresh")
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.2)
        Trainer(model, config, optimizer=optimizer, train_dataset=same).train()
        save_peft(model, tmp_path / f"{stage}-{dp}")
        with torch.no_grad():
            return model.eval()(IDS).logits, merge(model)(IDS).logits

    generator = torch.Generator().manual_seed(4)
    same = [{"input_ids": torch.randint(3, 97, (7,), generator=generator).tolist()} for _ in range(4)]
    torch.manual_seed(2)
    LlamaForCausalLM(toy_llama_config(initializer_range=0.2)).save_pretrained(tmp_path / "model")
    run_ranks(1, lambda: ours(0, 1, 1))
    [expected] = run_ranks(1, theirs)
    kept = sum(int(value.count_nonzero()) for name, value in expected.items() if "lora_E" in name)
    assert kept == 2 * 4  # target_r of four maps, where there were four of each
    for stage, dp, accumulate in ((0, 1, 2), (0, 2, 1), (1, 2, 1), (2, 2, 2), (3, 2, 1)):
        for logits, merged in run_ranks(dp, lambda case=(stage, dp, accumulate): ours(*case)):
            torch.testing.assert_close(merged, logits, atol=1e-4, rtol=0)
        trained = load_file(tmp_path / f"{stage}-{dp}" / "adapter_model.safetensors")
        assert len(trained) == len(expected)
        for name, value in trained.items():
            torch.testing.assert_close(value, expected[f"{name}.default"], atol=3e-4, rtol=0)


def test_adalora_under_lomo_is_refused():
    def make():
        config = make_config()
        config.peft_config = peft.AdaLoraConfig(total_step=4)
        model = CollieModelForCausalLM.from_config(config)
        with pytest.raises(ConfigError, match="Lomo updates while gradients are computed, and AdaLoRA weighs"):
            Trainer(model, config, optimizer=Lomo(model, 0.1), train_dataset=rows())

    run_ranks(1, make)
