"""Every evaluator in every layout: what each rank gets is what one process gets from the same rows, each counted once.

Thirteen rows, two a batch on each rank: the last global batch is uneven on 2 and 3 replicas, and on 3 it leaves ranks
without a row of their own.
"""

import pytest
import torch
from transformers import GenerationConfig

import collie.controller.evaluator as evaluators
from collie.config import CollieConfig
from collie.controller.evaluator import Evaluator, EvaluatorForGeneration, EvaluatorForPerplexity
from collie.data import CollieDataLoader
from collie.interfaces import DataError
from collie.metrics import BaseMetric, PPLMetric
from collie.models import CollieModelForCausalLM
from collie.parallel import setup_distribution
from collie.testing import run_ranks, toy_llama_config

ROWS = 13


class Kept(BaseMetric):
    """What was predicted for each row, in order."""

    def __init__(self):
        super().__init__(gather_result=True)

    def reset(self):
        self.rows = []

    def update(self, result):
        self.rows += result["pred"]

    def get_metric(self):
        return {"rows": len(self.rows)}


def _rows():
    """Prompts of 1 to 5 tokens and answers of 1 to 4, each row with its number."""
    draw = torch.Generator().manual_seed(9)
    made = []
    for number in range(ROWS):
        ids = torch.randint(3, 97, (2 + number % 5 + number % 4,), generator=draw).tolist()
        start = 1 + number % 5
        made.append({"input_ids": ids, "labels": [-100] * start + ids[start:], "number": number})
    return made


def _generic(model):
    kept = Kept()

    def counted(evaluator, batch):
        """The numbers that rows carry, as if they were predicted."""
        numbers = batch.pop("number")
        return Evaluator.eval_fn(evaluator, batch) | {"pred": numbers.tolist()}

    results = Evaluator(model, _rows(), metrics={"ppl": PPLMetric(), "kept": kept}, eval_fn=counted).eval()
    return results, kept.rows


def _perplexity(model):
    return EvaluatorForPerplexity(model, _rows()).eval(), None


def _generation(model):
    """Greedy: every token of every row, in the dataset's order."""
    kept = Kept()
    settings = GenerationConfig(max_new_tokens=4, eos_token_id=2, pad_token_id=0)
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in _rows()]
    results = EvaluatorForGeneration(model, rows, metrics={"kept": kept}, generation_config=settings).eval()
    return results, kept.rows


def _classification(model):
    """Two or three answers to choose from: the candidates of a row are no multiple of the batch's rows."""
    rows = []
    for row in _rows():
        given = row["input_ids"][:2]
        answers = [[3 + (row["number"] * 7 + each * 11) % 90] * (1 + each) for each in range(2 + row["number"] % 2)]
        rows.append(
            {
                "input_ids": [given + answer for answer in answers],
                "attention_mask": [[1] * len(given + answer) for answer in answers],
                "labels": [[-100] * len(given) + answer for answer in answers],
                "target": row["number"] % 2,
            }
        )
    return evaluators.EvaluatorForClassification(model, rows).eval(), None


EVALUATORS = {"generic": _generic, "perplexity": _perplexity, "generation": _generation}
if hasattr(evaluators, "EvaluatorForClassification"):
    EVALUATORS["classification"] = _classification

LAYOUTS = {  # by the number of ranks
    1: {"one": {}, "zero3": {"stage": 3}},
    2: {"dp2": {}, "dp2 zero3": {"stage": 3}, "tp2": {"tp_size": 2}, "pp2": {"pp_size": 2}},
    3: {"dp3": {}, "dp3 zero3": {"stage": 3}},
    4: {"dp2 tp2 zero3": {"stage": 3, "tp_size": 2}, "dp2 pp2": {"pp_size": 2}},
}


def _evaluate(layouts):
    """All evaluators in each of the layouts of this many ranks, by layout and evaluator."""
    found = {}
    for name, sizes in layouts.items():
        config = CollieConfig(model_config=toy_llama_config(), eval_batch_size=2, use_flash=False)
        config.initization_method, config.initization_method_params = "normal", {"std": 0.4}
        for field, value in sizes.items():
            if field != "stage":
                setattr(config, field, value)
        config.ds_config = {"zero_optimization": {"stage": sizes.get("stage", 0)}}
        if sizes.get("stage") == 3:
            config.ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        setup_distribution(config)
        model = CollieModelForCausalLM.from_config(config)
        found[name] = {kind: evaluate(model) for kind, evaluate in EVALUATORS.items()}
    return found


@pytest.fixture(scope="module")
def alone():
    """What one process gets, without anything split."""
    [found] = run_ranks(1, _evaluate, LAYOUTS[1])
    return found


def test_one_process_counts_each_row_once(alone):
    for found in alone.values():
        results, seen = found["generic"]
        assert results["kept#rows"] == ROWS and seen == list(range(ROWS))
        assert results["ppl"] == pytest.approx(found["perplexity"][0]["ppl"], rel=1e-6)
        assert len(found["generation"][1]) == ROWS == len({tuple(ids) for ids in found["generation"][1]})
    _assert_same(alone["zero3"], alone["one"], "zero3")


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_rank_has_what_one_process_has(alone, ranks):
    for number, found in enumerate(run_ranks(ranks, _evaluate, LAYOUTS[ranks], timeout=120)):
        assert found.keys() == LAYOUTS[ranks].keys()
        for layout, ours in found.items():
            _assert_same(ours, alone["one"], f"{layout}, rank {number}")


def _assert_same(ours, expected, where):
    """Texts, counts and choices exactly; sums of floats to the order in which they were added."""
    for kind, (results, rows) in expected.items():
        assert ours[kind][0] == pytest.approx(results, rel=1e-5), (where, kind)
        assert ours[kind][1] == rows, (where, kind)


@pytest.mark.parametrize("kind", ["a bad row", "a bad row of a loader", "no rows"])
def test_no_rank_waits_for_one_whose_rows_cannot_be_read(kind):
    """Two rows of the second rank that do not fit in one batch, or none there at all, end it on both."""

    def evaluate():
        config = CollieConfig(model_config=toy_llama_config(), eval_batch_size=2, use_flash=False)
        rows = _rows()
        del rows[3]["labels"]
        topology = setup_distribution(config)
        loader = CollieDataLoader(rows, 2, dp_rank=topology.dp_rank, dp_size=topology.dp_size)
        if kind == "no rows":
            rows = [] if topology.dp_rank == 1 else rows
        model = CollieModelForCausalLM.from_config(config)
        EvaluatorForPerplexity(model, rows, config=config).eval(loader if kind == "a bad row of a loader" else None)

    first, second = run_ranks(2, evaluate, timeout=30, return_exceptions=True)
    assert isinstance(first.exception, DataError) and isinstance(second.exception, DataError)
    assert "data-parallel rank 1 could not read its rows" in str(first.exception)
    reason = "the dataset has no rows" if kind == "no rows" else "differs from row 0 in the fields ['labels']"
    assert reason in str(second.exception)
