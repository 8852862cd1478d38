"""Perplexity of a dataset is that of all its target tokens, however they are spread."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from collie.controller.evaluator import EvaluatorForPerplexity
from collie.data import ColliePadder
from collie.interfaces import ConfigError, DataError
from collie.module import GPTLMLoss
from collie.testing import run_ranks, toy_llama_config


def _expected(model, rows) -> float:
    """The definition, one row at a time: exp of the mean over all predicted labels."""
    losses = []
    for row in rows:
        logits = model.table[torch.tensor(row["input_ids"])]
        losses += cross_entropy(logits[:-1], torch.tensor(row["labels"][1:]), reduction="none").tolist()
        losses = [loss for loss in losses if loss]  # -100 gives an exact 0
    return math.exp(math.fsum(losses) / len(losses))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_with_uneven_rows_equal_the_definition(bigram, pairs, config, ranks):
    def rank() -> tuple[float, int]:
        evaluator = EvaluatorForPerplexity(model=bigram, dataset=pairs, config=config)
        return evaluator.eval()["ppl"], len(bigram.seen)

    values, calls = zip(*run_ranks(ranks, rank), strict=True)
    assert values == pytest.approx([_expected(bigram, pairs)] * ranks, rel=1e-6)
    assert len(set(values)) == 1
    assert set(calls) == {math.ceil(7 / (2 * ranks))}  # fillers ran, and did not count


def test_full_logits_are_never_made(bigram, pairs):
    EvaluatorForPerplexity(bigram, pairs).eval()
    assert (len(bigram.seen), bigram.made_logits) == (7, 0)


def test_rows_without_targets_weigh_nothing(bigram, pairs, config):
    silent = {"input_ids": [5, 6, 7], "labels": [-100] * 3}
    with_silent = EvaluatorForPerplexity(bigram, [silent, *pairs, silent]).eval()["ppl"]
    assert with_silent == pytest.approx(_expected(bigram, pairs), rel=1e-6)
    with pytest.raises(DataError, match="0 target tokens"):
        EvaluatorForPerplexity(bigram, [silent]).eval()


def test_the_ignored_label_is_that_of_the_loss(bigram, pairs):
    """GPTLMLoss(ignore_index=0): rows that mark no-target with 0."""
    rows = [{**row, "labels": [0 if label == -100 else label for label in row["labels"]]} for row in pairs]
    got = EvaluatorForPerplexity(bigram, rows, loss_fn=GPTLMLoss(0)).eval()["ppl"]
    assert got == pytest.approx(_expected(bigram, pairs), rel=1e-6)


def test_an_own_loss_has_its_own_ignored_label(bigram, pairs, config):
    class Mine(GPTLMLoss):
        """A subclass may compute anything."""

    rows = [{**row, "labels": [0 if label == -100 else label for label in row["labels"]]} for row in pairs]
    got = EvaluatorForPerplexity(model=bigram, dataset=rows, loss_fn=Mine(0), config=config).eval()["ppl"]
    assert got == pytest.approx(_expected(bigram, pairs), rel=1e-6)
    assert bigram.made_logits == 4  # its forward was used


def test_padding_predicts_nothing(bigram, config):
    """Rows of which every token is a label: padded on the left, the first would be predicted by padding."""
    rows = [{"input_ids": ids, "labels": ids} for ids in ([5, 6, 7, 8], [9, 4])]
    for left in (False, True):
        collate_fn = ColliePadder(padding_left=left)
        got = EvaluatorForPerplexity(bigram, rows, config=config, collate_fn=collate_fn).eval()["ppl"]
        assert got == pytest.approx(_expected(bigram, rows), rel=1e-6)


def test_an_own_loss_gets_what_its_parameters_name(bigram, pairs, config):
    """It returns a mean over the batch's target tokens; the batches of 2 are weighed by their targets."""
    named = []

    def loss_fn(labels, logits, attention_mask, scale=1.0):
        named.append((labels.shape, logits.shape, attention_mask.shape, scale))
        return GPTLMLoss()(logits, labels)

    got = EvaluatorForPerplexity(model=bigram, dataset=pairs, loss_fn=loss_fn, config=config).eval()["ppl"]
    assert got == pytest.approx(_expected(bigram, pairs), rel=1e-6)
    shape = named[0][0]
    assert named[0] == (shape, (*shape, 29), shape, 1.0)


def test_a_loss_that_cannot_be_called_is_told_why(bigram, pairs):
    with pytest.raises(ConfigError, match=r"neither the batch nor the model's outputs have input, target.*logits"):
        EvaluatorForPerplexity(bigram, pairs, loss_fn=nn.CrossEntropyLoss()).eval()
    with pytest.raises(ConfigError, match="must return a scalar"):
        EvaluatorForPerplexity(bigram, pairs, loss_fn=lambda logits, labels: logits).eval()


def test_a_plain_module_that_returns_logits_works(bigram, pairs):
    class Plain(nn.Module):
        def forward(self, input_ids):
            return bigram.table[input_ids]

    got = EvaluatorForPerplexity(Plain(), pairs).eval()["ppl"]
    assert got == pytest.approx(_expected(bigram, pairs), rel=1e-6)


def test_a_model_of_transformers_works(pairs):
    """It has no return_logits; its own loss over the same batch is the reference."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(toy_llama_config()).eval()
    nll, count = 0.0, 0
    for row in pairs:
        batch = {key: torch.tensor([value]) for key, value in row.items()}
        targets = sum(label != -100 for label in row["labels"][1:])
        nll, count = nll + model(**batch).loss.item() * targets, count + targets
    got = EvaluatorForPerplexity(model, pairs).eval()["ppl"]
    assert got == pytest.approx(math.exp(nll / count), rel=1e-5)


def test_a_wrapper_with_the_inner_forward_is_seen_through(bigram, pairs):
    """An adapter's wrapper takes **kwargs and names the model inside: the head still sums the loss."""

    class Wrapper(nn.Module):
        def forward(self, **inputs):
            return bigram(**inputs)

        def get_base_model(self):
            return bigram

    got = EvaluatorForPerplexity(Wrapper(), pairs).eval()["ppl"]
    assert (got, bigram.made_logits) == (pytest.approx(_expected(bigram, pairs), rel=1e-6), 0)


def test_a_perplexity_too_large_is_infinite(pairs):
    class Sure(nn.Module):
        """Certain of what is wrong."""

        def forward(self, input_ids, labels=None):
            logits = torch.zeros(*input_ids.shape, 29)
            logits[..., 0] = 5000.0
            return SimpleNamespace(logits=logits)

    assert EvaluatorForPerplexity(Sure(), pairs).eval()["ppl"] == math.inf
