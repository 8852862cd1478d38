"""CoLLiE's own models: reference numbers, several ranks, and text generated from prompts side by side."""

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from collie.config import CollieConfig
from collie.controller.evaluator import EvaluatorForGeneration, EvaluatorForPerplexity
from collie.data import ColliePadder
from collie.metrics import DecodeMetric
from collie.models import CollieModelForCausalLM
from collie.testing import golden, run_ranks, toy_llama_config, toy_moss_config

FAMILIES = {"llama": toy_llama_config, "moss": toy_moss_config}


def _model(family, **sizes):
    """Random weights wide enough that tokens differ; equal on every rank and in every layout."""
    config = CollieConfig(model_config=FAMILIES[family](), eval_batch_size=2, **sizes)
    config.initization_method, config.initization_method_params = "normal", {"std": 0.4}
    return CollieModelForCausalLM.from_config(config)


def _rows(golden_case):
    """The reference batch as rows, each without its padding."""
    rows = []
    for ids, keep, labels in zip(*(golden_case[key] for key in ("input_ids", "attention_mask", "labels")), strict=True):
        kept = keep.bool()
        rows.append({"input_ids": ids[kept].tolist(), "labels": labels[kept].tolist()})
    return rows


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", ["llama3", "moss_moon"])
def test_perplexity_of_the_reference_batch(name, left):
    """exp of the reference's own loss, whichever side is padded, and whatever rows share a batch."""
    case = load_file(golden(name) / "golden.safetensors")
    model = CollieModelForCausalLM.from_pretrained(golden(name))
    for batch_size in (1, 3):
        model.collie_config.eval_batch_size = batch_size
        evaluator = EvaluatorForPerplexity(model, _rows(case), collate_fn=ColliePadder(padding_left=left))
        assert evaluator.eval()["ppl"] == pytest.approx(math.exp(case["loss"].item()), rel=1e-4)


@pytest.mark.parametrize("name", ["llama3", "moss_moon"])
def test_generated_tokens_are_the_reference_s(name):
    case = load_file(golden(name) / "golden.safetensors")
    model = CollieModelForCausalLM.from_pretrained(golden(name))
    expected = case["greedy_ids"][0].tolist()
    settings = GenerationConfig(max_new_tokens=len(expected), eos_token_id=-1, pad_token_id=0)  # it did not stop
    evaluator = EvaluatorForGeneration(model, generation_config=settings, metrics={})
    assert evaluator.eval_fn({"input_ids": case["prompt_ids"]})["pred"] == [expected]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_perplexity_on_ranks_is_that_of_one_process(family, ranks, pairs):
    def rank():
        return EvaluatorForPerplexity(_model(family), pairs).eval()["ppl"]

    (alone,) = run_ranks(1, rank)
    assert run_ranks(ranks, rank) == pytest.approx([alone] * ranks, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_on_ranks_is_that_of_one_process_row_by_row(family, pairs, letters):
    """Seven prompts of different lengths: alone, in batches of two, and over two ranks."""

    def rank(batch_size):
        model = _model(family)
        model.collie_config.eval_batch_size = batch_size
        metric = DecodeMetric(verbose=False)
        settings = GenerationConfig(max_new_tokens=5)
        EvaluatorForGeneration(model, pairs, letters, {"decode": metric}, generation_config=settings).eval()
        return metric.get_metric()

    (alone,) = run_ranks(1, rank, 1)
    assert len(set(alone)) == 7
    assert run_ranks(1, rank, 2) == [alone]
    assert run_ranks(2, rank, 2) == [alone] * 2


@pytest.mark.parametrize(
    ("ranks", "sizes"), [(2, {"pp_size": 2}), (2, {"tp_size": 2}), (4, {"pp_size": 2, "tp_size": 2})]
)
def test_a_replica_of_several_ranks_evaluates_as_one_process(ranks, sizes, pairs, letters):
    """Stages and tensor-parallel parts: the same perplexity and the same texts on every rank."""

    def rank(**sizes):
        model = _model("llama", **sizes)
        metric, settings = DecodeMetric(verbose=False), GenerationConfig(max_new_tokens=5)
        EvaluatorForGeneration(model, pairs, letters, {"decode": metric}, generation_config=settings).eval()
        return EvaluatorForPerplexity(model, pairs).eval()["ppl"], metric.get_metric()

    ((perplexity, texts),) = run_ranks(1, rank)
    for ours, their_texts in run_ranks(ranks, lambda: rank(**sizes)):
        assert ours == pytest.approx(perplexity, rel=1e-5)
        assert their_texts == texts


def test_evaluating_between_steps_leaves_training_as_it_was(pairs):
    """With dropout, the losses of three steps are bitwise those without evaluations in between."""

    def losses(evaluate):
        config = CollieConfig(model_config=toy_llama_config(), dropout=0.2)
        model = CollieModelForCausalLM.from_config(config).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batch = ColliePadder()(pairs[:2])
        torch.manual_seed(3)
        values = []
        for _ in range(3):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            values.append(loss.item())
            if evaluate:
                EvaluatorForPerplexity(model, pairs).eval()
        return values

    assert losses(evaluate=True) == losses(evaluate=False)
