"""What training asks of a model: the loss's denominator, dropout, activation checkpointing, ties."""

import pytest
import torch
from torch.testing import assert_close
from transformers import MistralConfig

from collie.config import CollieConfig
from collie.models import ChatGLMConfig, CollieModelForCausalLM
from collie.module import LMHead
from collie.testing import toy_config, toy_llama_config, toy_moss_config


def toy_chatglm_config():
    """Of the rows below, the second has its answer after token 4; the first has no bos."""
    sizes = {"vocab_size": 97, "hidden_size": 32, "inner_hidden_size": 48, "num_layers": 2, "num_attention_heads": 4}
    return ChatGLMConfig(**sizes, bos_token_id=4, gmask_token_id=3, mask_token_id=90, eos_token_id=2)


FAMILIES = {
    "llama": toy_llama_config,
    "moss": toy_moss_config,
    "mistral": lambda: toy_config(MistralConfig, sliding_window=3),
    "chatglm": toy_chatglm_config,
}
IDS = torch.tensor([[5, 9, 13, 40, 41, 7, 22, 81], [1, 2, 3, 4, 5, 6, 7, 8]])


@pytest.fixture(autouse=True)
def end_process_group():
    """Loading a model makes this process a world of one; tests that fork ranks need it to be none."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def make(family, **fields):
    model = CollieModelForCausalLM.from_config(CollieConfig(model_config=FAMILIES[family](), **fields))
    return model.train()


def gradients(model, **arguments):
    model.zero_grad()
    torch.manual_seed(11)
    loss = model(IDS, labels=IDS, **arguments).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("use_flash", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_the_same_gradients_bit_for_bit(family, use_flash, monkeypatch):
    """Also with dropout: recomputing a layer draws the same numbers."""
    plain = make(family, checkpointing=False, dropout=0.2, use_flash=use_flash)
    again = make(family, checkpointing=True, dropout=0.2, use_flash=use_flash)
    runs = []
    layer = again.layers["1"]
    monkeypatch.setattr(layer, "forward", lambda *a, f=layer.forward: runs.append(1) or f(*a))
    loss, grads = gradients(plain)
    loss_again, grads_again = gradients(again)
    assert len(runs) == 2  # forward, and again in backward
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_recomputation_where_there_is_no_backward(family, monkeypatch):
    model = make(family, checkpointing=True)
    monkeypatch.setattr("collie.models._recompute.checkpoint", lambda *a, **k: pytest.fail("nothing to recompute for"))
    with torch.no_grad():
        model(IDS)
    model.eval()(IDS)
    model.train()(IDS, use_cache=True)  # a second run would extend the cache twice


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_acts_in_training_alone(family):
    model = make(family, dropout=0.3)
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    model.eval()
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    still = make(family, dropout=0.0)
    assert torch.equal(still(IDS).logits, still.eval()(IDS).logits)


@pytest.mark.parametrize("place", ["embedding", "attention", "residual"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_reaches_embedding_attention_weights_and_residual_branches(family, place):
    """With it left on in one place only, outputs still vary."""
    model = make(family, dropout=0.3)
    if place != "embedding":
        model.collie_config.dropout = 0.0
    for layer in model.layers.values():
        if place != "attention":
            layer.attention.dropout = 0.0
        if place != "residual":
            layer.dropout = 0.0
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_in_the_head_equals_the_loss_of_logits(family):
    model = make(family)
    loss, grads = gradients(model, return_logits=True)
    chunked, chunked_grads = gradients(model, return_logits=False)
    assert_close(chunked, loss, atol=1e-5, rtol=0)
    for a, b in zip(chunked_grads, grads, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("return_logits", [True, False])
def test_loss_over_more_than_this_batch(return_logits):
    """With num_items_in_batch, two halves' losses add up to the mean over both."""
    model = make("llama")
    labels = IDS.clone()
    labels[0, :5] = -100
    whole = model(IDS, labels=labels, return_logits=return_logits).loss
    halves = [
        model(IDS[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=10, return_logits=return_logits).loss
        for i in (0, 1)
    ]
    assert_close(sum(halves), whole, atol=1e-5, rtol=0)


def test_a_tied_head_is_one_parameter_with_both_gradients():
    config = CollieConfig(model_config=toy_llama_config(tie_word_embeddings=True), checkpointing=False)
    model = CollieModelForCausalLM.from_config(config).train()
    assert model.get_lm_head().weight is model.get_input_embedding().weight
    model(IDS, labels=IDS).loss.backward()
    grad = model.embed.weight.grad
    unseen = [t for t in range(97) if t not in IDS]
    assert grad[unseen].abs().sum() > 0  # from the head: every token is pushed down
    model.zero_grad()
    model.head.weight = torch.nn.Parameter(model.embed.weight.detach().clone())
    model(IDS, labels=IDS).loss.backward()
    assert_close(grad, model.embed.weight.grad + model.head.weight.grad, atol=1e-6, rtol=0)


def test_the_head_is_called_once_and_logits_are_not_made(monkeypatch):
    """Under ZeRO-3 each call gathers the head's weight."""
    model = make("moss")
    calls = []
    forward = LMHead.forward
    monkeypatch.setattr(LMHead, "forward", lambda self, *a: calls.append(forward(self, *a)) or calls[-1])
    model(IDS, labels=IDS, return_logits=False)
    assert [c.shape for c in calls] == [torch.Size([])]
    model(IDS, labels=IDS)
    assert [c.shape for c in calls[1:]] == [torch.Size([2, 8, 97])]


@pytest.mark.parametrize("labels", [None, IDS])
def test_only_the_last_logits_are_kept_where_they_are_asked_for(labels):
    """The loss stays that of all positions."""
    model = make("llama").eval()
    with torch.no_grad():
        every, last = (model(IDS, labels=labels, logits_to_keep=keep) for keep in (0, 3))
    assert every.logits.shape == (2, 8, every.logits.shape[-1]) and last.logits.shape[1] == 3
    assert_close(last.logits, every.logits[:, -3:])
    assert labels is None or torch.equal(last.loss, every.loss)
