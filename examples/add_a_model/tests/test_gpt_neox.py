"""GPT-NeoX in CoLLiE and in transformers: equal numbers, in every layout."""

import pytest
import torch
from torch.testing import assert_close
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from collie.config import CollieConfig
from collie.controller.trainer import Trainer
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.optim import Lomo
from collie.testing import run_ranks

LAYOUTS = {  # the number of ranks, and what the config says of them
    "one process": (1, {"train_micro_batch_size": 2}),
    "tensor parallel": (2, {"train_micro_batch_size": 2, "tp_size": 2}),
    "pipeline": (2, {"train_micro_batch_size": 1, "gradient_accumulation_steps": 2, "pp_size": 2}),
    "ZeRO-3": (2, {"train_micro_batch_size": 1, "ds_config": {"zero_optimization": {"stage": 3}}}),
}
IDS = torch.tensor([[5, 9, 13, 40, 41, 7, 22, 81], [0, 0, 0, 4, 96, 11, 60, 33]])  # the second has padding in front
KEEP = (IDS > 0).long()
LABELS = torch.where(IDS > 4, IDS, -100)
LR = 0.5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder that transformers wrote; 97 tokens, which two ranks do not divide."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "max_position_embeddings": 64}
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    theirs = GPTNeoXForCausalLM(
        GPTNeoXConfig(num_hidden_layers=2, num_attention_heads=4, rope_parameters=rope, eos_token_id=None, **sizes)
    )
    for parameter in theirs.parameters():  # biases start at zero and norms at one, where a wrong one would not show
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("gpt-neox")
    theirs.save_pretrained(folder)
    return folder


def answers(folder, fields):
    """Logits, loss and greedy tokens, on one rank."""
    model = CollieModelForCausalLM.from_pretrained(folder, **fields)
    with torch.no_grad():
        logits = model(IDS, attention_mask=KEEP).logits
        loss = model(IDS, attention_mask=KEEP, labels=LABELS, return_logits=False).loss
    return logits, loss, model.generate(IDS[:1], max_new_tokens=12, do_sample=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_are_those_of_transformers(checkpoint, layout):
    theirs = GPTNeoXForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = theirs(IDS, attention_mask=KEEP, labels=LABELS)
    greedy = theirs.generate(IDS[:1], max_new_tokens=12, do_sample=False, use_cache=False)
    ranks, fields = LAYOUTS[layout]
    for logits, loss, tokens in run_ranks(ranks, answers, checkpoint, fields):
        assert_close(logits[KEEP.bool()], expected.logits[KEEP.bool()], atol=1e-5, rtol=0)
        assert_close(loss, expected.loss, atol=1e-5, rtol=0)
        assert torch.equal(tokens, greedy)


def train(folder, fields, saved):
    """One step of LOMO on all rows, which without clipping is one of SGD."""
    config = CollieConfig.from_pretrained(str(folder), train_epochs=1, **fields)
    model = CollieModelForCausalLM.from_pretrained(folder, config=config)
    rows = [
        {"input_ids": ids[keep].tolist(), "labels": labels[keep].tolist()}
        for ids, keep, labels in zip(IDS, KEEP.bool(), LABELS, strict=True)
    ]
    trainer = Trainer(model=model, config=config, optimizer=Lomo(model, lr=LR), train_dataset=rows)
    trainer.train()
    trainer.save_model(str(saved))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_trained_and_saved_model_is_that_of_transformers(checkpoint, layout, tmp_path, monkeypatch):
    """What a step of SGD makes of every weight shows every gradient."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    theirs = GPTNeoXForCausalLM.from_pretrained(checkpoint)
    theirs(IDS, attention_mask=KEEP, labels=LABELS).loss.backward()
    assert all(parameter.grad.abs().max() > 1e-3 for parameter in theirs.parameters())
    torch.optim.SGD(theirs.parameters(), lr=LR).step()
    ranks, fields = LAYOUTS[layout]
    run_ranks(ranks, train, checkpoint, fields, tmp_path / "trained")
    read, told = GPTNeoXForCausalLM.from_pretrained(tmp_path / "trained", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    for name, weight in theirs.state_dict().items():
        assert_close(read.state_dict()[name], weight, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_branches_behind_one_another_are_refused():
    config = CollieConfig(model_config=GPTNeoXConfig(use_parallel_residual=False))
    with pytest.raises(ConfigError, match="use_parallel_residual=False"):
        CollieModelForCausalLM.from_config(config)
