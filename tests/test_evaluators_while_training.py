"""Evaluators in a Trainer, in every layout: what each rank gets after each epoch is what one process gets."""

import pytest
import torch
from transformers import GenerationConfig

from collie.callbacks import Callback
from collie.config import CollieConfig
from collie.controller.evaluator import Evaluator, EvaluatorForGeneration, EvaluatorForPerplexity
from collie.controller.trainer import Trainer
from collie.metrics import BaseMetric, PPLMetric
from collie.models import CollieModelForCausalLM
from collie.testing import run_ranks, toy_llama_config

LAYOUTS = {
    1: {"one": {"micro": 6}},
    2: {
        "dp2": {"micro": 3},
        "zero3": {"micro": 3, "stage": 3},
        "tp2": {"micro": 6, "tp_size": 2},
        "pp2": {"micro": 3, "accumulate": 2, "pp_size": 2},
    },
    3: {"dp3": {"micro": 2}},
}


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


class Kept(BaseMetric):
    """The tokens that were generated for each row, in order."""

    def reset(self):
        self.rows = []

    def update(self, result):
        self.rows += result["pred"]

    def get_metric(self):
        return {"rows": len(self.rows)}


def _rows(count):
    draw = torch.Generator().manual_seed(2)
    ids = [torch.randint(3, 97, (4 + number % 5,), generator=draw).tolist() for number in range(count)]
    return [{"input_ids": each, "labels": [-100, -100, *each[2:]]} for each in ids]


def _train(layout):
    """Two epochs of six rows, and after each the evaluators over seven others, two a batch; results and texts."""
    config = CollieConfig(
        model_config=toy_llama_config(), eval_batch_size=2, use_flash=False, checkpointing=False, train_epochs=2,
        train_micro_batch_size=layout["micro"], gradient_accumulation_steps=layout.get("accumulate", 1),
        tp_size=layout.get("tp_size", 1), pp_size=layout.get("pp_size", 1), eval_per_n_epochs=1,
        ds_config={"zero_optimization": {"stage": layout.get("stage", 0)}},
    )  # fmt: skip
    config.initization_method, config.initization_method_params = "normal", {"std": 0.4}
    model = CollieModelForCausalLM.from_config(config)
    kept = Kept(gather_result=True)
    settings = GenerationConfig(max_new_tokens=4, eos_token_id=2, pad_token_id=0)
    found = []

    class Noting(Callback):
        def on_evaluate_end(self, trainer, results):
            found.append((results, kept.rows))

    Trainer(
        model, config, optimizer=torch.optim.SGD(model.parameters(), lr=0.05), train_dataset=_rows(6),
        callbacks=Noting(),
        evaluators=[
            Evaluator(model, _rows(7), metrics={"generic": PPLMetric()}, config=config),
            EvaluatorForPerplexity(model, _rows(7), metrics={"perplexity": PPLMetric()}, config=config),
            EvaluatorForGeneration(
                model, _rows(7), metrics={"kept": kept}, config=config, generation_config=settings
            ),
        ],
    ).train()  # fmt: skip
    return found


def test_evaluators_in_a_trainer_have_what_one_process_has():
    [alone] = run_ranks(1, _train, LAYOUTS[1]["one"])
    assert len(alone) == 2 and alone[0] != alone[1] and len(alone[0][1]) == 7
    for ranks in (2, 3):
        for found in run_ranks(ranks, lambda each=LAYOUTS[ranks]: {name: _train(one) for name, one in each.items()}):
            for name, evaluations in found.items():
                for (results, texts), (expected, expected_texts) in zip(evaluations, alone, strict=True):
                    assert results == pytest.approx(expected, rel=1e-4), name
                    assert texts == expected_texts, name
