"""Evaluations over packs: the perplexity of the rows apart, and no generation."""

import pytest
import torch

from collie.config import CollieConfig
from collie.controller.evaluator import EvaluatorForGeneration, EvaluatorForPerplexity
from collie.data import ColliePadder, PackedDataset
from collie.interfaces import DataError
from collie.models import CollieModelForCausalLM
from collie.module import GPTLMLoss
from collie.testing import run_ranks, toy_llama_config


class Mine(GPTLMLoss):
    """A user's own loss, which needs the logits."""


def rows():
    generator = torch.Generator().manual_seed(2)
    made = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in (5, 3, 8, 2, 6, 7, 4)]
    return [{"input_ids": ids, "labels": [-100] * (i % 2) + ids[i % 2 :]} for i, ids in enumerate(made)]


def perplexities():
    """Of rows, of packs, of packs padded on the left, and of packs by the user's loss."""
    config = CollieConfig(model_config=toy_llama_config(initializer_range=0.3), eval_batch_size=2)
    model = CollieModelForCausalLM.from_config(config)
    packs = PackedDataset(rows(), 9)
    evaluators = [
        EvaluatorForPerplexity(model, rows(), config=config),
        EvaluatorForPerplexity(model, packs, config=config),
        EvaluatorForPerplexity(model, packs, config=config, collate_fn=ColliePadder(padding_left=True)),
        EvaluatorForPerplexity(model, packs, config=config, loss_fn=Mine()),
    ]
    return [evaluator.eval()["ppl"] for evaluator in evaluators]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_perplexity_over_packs_is_that_over_rows(ranks):
    """Four packs: on three ranks one has a filler."""
    for apart, *packed in run_ranks(ranks, perplexities):
        assert packed == pytest.approx([apart] * 3, rel=1e-6)


def test_nothing_is_generated_from_packs(bigram):
    with pytest.raises(DataError, match="the batch's rows are packed"):
        EvaluatorForGeneration(bigram, PackedDataset(rows(), 9), collate_fn=ColliePadder()).eval()
