"""A Trainer that evaluates a dataset with collie-eval, keeps the best and ends with it."""

import pytest
import torch

from collie.callbacks import CheckpointCallback, LoadBestModelCallback
from collie.config import CollieConfig
from collie.controller.trainer import Trainer
from collie.data import ColliePadder
from collie.metrics import PPLMetric
from collie.models import CollieModelForCausalLM
from collie.parallel import full_parameters
from collie.testing import run_ranks, toy_llama_config


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


class Noted(ColliePadder):
    """A collate function of one's own, which notes the rows that it got."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.rows = []

    def __call__(self, rows):
        self.rows.extend(row["number"] for row in rows)
        return super().__call__([{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows])


def dataset(start, count):
    generator = torch.Generator().manual_seed(start)
    return [
        {"number": start + n, "input_ids": torch.randint(3, 97, (6,), generator=generator).tolist()}
        for n in range(count)
    ]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_trainer_evaluates_a_dataset_with_a_function_and_metrics(ranks, tmp_path):
    """Three epochs at a rate that overshoots: what is kept, and what the training ends with, is what was best."""

    def run():
        config = CollieConfig(
            train_epochs=3, eval_per_n_epochs=1, train_micro_batch_size=8 // ranks, eval_batch_size=3,
            checkpointing=False, use_flash=False,
        )  # fmt: skip
        config.model_config = toy_llama_config(initializer_range=0.3)
        model = CollieModelForCausalLM.from_config(config)
        found = []

        def eval_fn(evaluator, batch):
            loss = evaluator.model(**batch).loss
            tokens = (batch["labels"][:, 1:] != -100).sum().item()
            return {"loss_sum": loss.item() * tokens, "tokens": tokens}

        class Listening(CheckpointCallback):
            def on_evaluate_end(self, trainer, results):
                found.append(results["mine"])
                super().on_evaluate_end(trainer, results)

        train, evaluate = Noted(), Noted(padding_left=True)
        trainer = Trainer(
            model, config, optimizer=torch.optim.SGD(model.parameters(), lr=0.8),
            train_dataset=dataset(0, 16), train_dataset_collate_fn=train,
            eval_dataset=dataset(0, 16), eval_dataset_collate_fn=evaluate, eval_fn=eval_fn,
            metrics={"mine": PPLMetric()},
            callbacks=[
                Listening(tmp_path / "kept", monitor="mine", larger_better=False, topk=1),
                LoadBestModelCallback(tmp_path / "best", monitor="mine", larger_better=False),
            ],
        )  # fmt: skip
        trainer.train()
        last = trainer.eval()["mine"]
        weights = {name: weight for name, weight in full_parameters(model, trainer.topology) if weight is not None}
        return found, last, train.rows, evaluate.rows, weights

    results = run_ranks(ranks, run)
    found, last, *_, weights = results[0]
    assert all(result[:2] == (found, last) for result in results)
    assert len(found) == 4 and last == pytest.approx(min(found), rel=1e-6)
    for position in (2, 3):
        assert {row for result in results for row in result[position]} == set(range(16))
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.name == f"epoch_{found.index(min(found))}-batch_2-mine_{min(found):.6g}"
    alone = run_ranks(1, lambda: CollieModelForCausalLM.from_pretrained(str(kept)).state_dict())[0]
    assert all(torch.equal(alone[name], weight) for name, weight in weights.items())
    assert not (tmp_path / "best" / "best").exists()
