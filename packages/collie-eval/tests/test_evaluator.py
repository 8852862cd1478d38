"""The loop: what is counted, what is reported, and what is left as it was."""

import math
from typing import Any

import pytest
import torch

from collie.controller.evaluator import Evaluator, EvaluatorForPerplexity
from collie.data import CollieDataLoader, ColliePadder, MicroBatch
from collie.events import Eval, Metric, Sample
from collie.interfaces import ConfigError, DataError
from collie.metrics import BaseMetric, DecodeMetric, PPLMetric
from collie.parallel import setup_distribution
from collie.testing import run_ranks
from collie.utils.monitor import EvalMonitor


class Rows(BaseMetric):
    """Counts rows, and what its update was given."""

    def reset(self) -> None:
        self.rows: list[int] = []

    def update(self, result: dict[str, Any]) -> None:
        self.rows += result["pred"]

    def get_metric(self) -> dict[str, Any]:
        return {"rows": len(self.rows), "sum": torch.tensor(sum(self.rows)), "text": "not a number"}


def _first_tokens(evaluator: Evaluator, batch: dict[str, Any]) -> dict[str, Any]:
    return {"pred": batch["input_ids"][:, 0].tolist()}


def _numbered(rows: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": [row, 3], "labels": [row, 3]} for row in range(rows)]


def test_a_metric_of_several_numbers_gives_name_hash_key(bigram):
    evaluator = Evaluator(bigram, _numbered(5), metrics={"seen": Rows()}, eval_fn=_first_tokens)
    results = evaluator.eval()
    assert results == {"seen#rows": 5.0, "seen#sum": 10.0}
    assert all(type(value) is float for value in results.values())


def test_texts_stay_with_their_metric(bigram, capsys):
    metric = DecodeMetric()
    evaluator = Evaluator(bigram, _numbered(2), metrics={"decode": metric}, eval_fn=lambda *_: {"pred": ["word"]})
    assert evaluator.eval() == {}
    assert metric.get_metric() == ["word", "word"]
    assert capsys.readouterr().out == "decoded: word\n" * 2


def test_a_second_evaluation_starts_from_nothing(bigram):
    evaluator = Evaluator(bigram, _numbered(4), metrics={"seen": Rows()}, eval_fn=_first_tokens)
    assert evaluator.eval() == evaluator.eval()


def test_eval_fn_may_be_a_method_of_a_subclass(bigram):
    class Mine(Evaluator):
        def eval_fn(self, batch):
            return {"pred": [len(batch["input_ids"])]}

    assert Mine(bigram, _numbered(3), metrics={"seen": Rows()}).eval() == {"seen#rows": 3.0, "seen#sum": 3.0}


def test_eval_fn_may_be_static_as_upstream_wrote_it(bigram):
    class Mine(Evaluator):
        @staticmethod
        def eval_fn(evaluator, batch):
            return {"pred": [int(evaluator.model is bigram)]}

    assert Mine(bigram, _numbered(3), metrics={"seen": Rows()}).eval()["seen#sum"] == 3.0


def test_the_generic_evaluator_measures_the_loss(bigram, pairs):
    generic = Evaluator(bigram, pairs, metrics={"ppl": PPLMetric()}).eval()
    assert generic == pytest.approx(EvaluatorForPerplexity(bigram, pairs).eval(), rel=1e-6)


def test_mode_of_each_module_and_gradients_are_put_back(bigram):
    bigram.train()
    bigram.inner.eval()  # frozen by its owner
    seen = []

    def look(evaluator, batch):
        seen.append((evaluator.model.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return {"pred": []}

    Evaluator(bigram, _numbered(1), eval_fn=look).eval()
    assert seen == [(False, False, False)]  # under inference mode ZeRO-3 could not gather
    assert (bigram.training, bigram.inner.training, torch.is_grad_enabled()) == (True, False, True)


def test_mode_is_put_back_when_the_evaluation_fails(bigram):
    def fail(evaluator, batch):
        raise RuntimeError("no such row")

    bigram.train()
    with pytest.raises(RuntimeError, match="no such row"):
        Evaluator(bigram, _numbered(1), eval_fn=fail).eval()
    assert bigram.training and bigram.inner.training and torch.is_grad_enabled()


def test_random_numbers_of_training_do_not_depend_on_evaluations(bigram):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Evaluator(bigram, _numbered(2), eval_fn=lambda *_: {"pred": torch.rand(4, 1)}).eval()
    assert torch.equal(torch.rand(3), expected)


def test_a_trainer_gets_one_eval_event_and_the_first_samples(bigram, letters, context, events):
    evaluator = Evaluator(
        torch.nn.Linear(1, 1),
        _numbered(9),
        tokenizer=letters,
        metrics={"seen": Rows()},
        eval_fn=lambda evaluator, batch: {
            "pred": [letters.encode("ab")],
            "target": ["reference"],
            "input_ids": batch["input_ids"] + 3,
        },
        name="held-out",
    )
    evaluator.bind(context, bigram)
    assert evaluator.model is bigram
    evaluator.metrics.clear()
    evaluator.eval()
    (report,) = events.of(Eval)
    assert (report.name, report.results, report.rows) == ("held-out", {}, 9)
    assert report.seconds > 0
    assert events.of(Sample) == [Sample(letters.decode([row + 3, 6]), "ab", "reference") for row in range(4)]
    assert {step for _, step in events.written} == {12}


def test_results_reach_the_event_and_the_monitors(bigram, context, events, config):
    """One Eval event, from the evaluator; EvalMonitor adds its numbers. Without a Trainer the monitor gets step 0."""
    monitor = EvalMonitor(config)
    evaluator = Evaluator(bigram, _numbered(3), metrics={"seen": Rows()}, eval_fn=_first_tokens, monitors=[monitor])
    results = evaluator.eval()
    assert monitor.item == {"eval_result": results, "eval_name": "eval", "global_step": 0}
    evaluator.bind(context, bigram)
    evaluator.eval()
    assert monitor.item["global_step"] == 12
    assert [event.results for event in events.of(Eval)] == [results]
    assert events.of(Metric) == [Metric("eval/seen#rows", 3.0), Metric("eval/seen#sum", 3.0)]


def test_ranks_other_than_0_write_nothing(bigram, context, events):
    evaluator = Evaluator(bigram, _numbered(3), metrics={"seen": Rows()}, eval_fn=_first_tokens)
    evaluator.bind(type(context)(events=events, rank=1, world_size=2, step=lambda: 12), bigram)
    evaluator.eval()
    assert events.written == []


def test_a_dataloader_takes_the_place_of_the_dataset(bigram):
    batches = [{"input_ids": torch.full((rows, 2), 3), "note": "any"} for rows in (2, 1)]
    evaluator = Evaluator(bigram, None, metrics={"seen": Rows()}, eval_fn=_first_tokens)
    assert evaluator.eval(batches) == {"seen#rows": 3.0, "seen#sum": 9.0}


def test_ranks_with_dataloaders_of_unequal_length_stay_in_step(config):
    """Rank r has r + 1 batches: all make three calls, and each batch counts once."""

    def rank() -> tuple[dict[str, float], int, int]:
        calls = []

        def count(evaluator, batch):
            calls.append(len(batch["input_ids"]))
            return _first_tokens(evaluator, batch)

        evaluator = Evaluator(torch.nn.Linear(1, 1), metrics={"seen": Rows(True)}, eval_fn=count, config=config)
        mine = setup_distribution(config).rank
        results = evaluator.eval([{"input_ids": torch.tensor([[10**mine]])} for _ in range(mine + 1)])
        return results, len(calls), mine

    for number, (results, calls, mine) in enumerate(run_ranks(3, rank)):
        assert (results, calls, mine) == ({"seen#rows": 6.0, "seen#sum": 321.0}, 3, number)


def test_a_collie_dataloader_brings_its_fillers(config):
    """Three rows over two ranks, one a batch: the second rank's second batch repeats a row, which does not count."""

    def rank() -> dict[str, float]:
        mine = setup_distribution(config).dp_rank
        loader = CollieDataLoader(_numbered(3), 1, dp_rank=mine, dp_size=2)
        return Evaluator(torch.nn.Linear(1, 1), None, None, {"seen": Rows(True)}, _first_tokens, config).eval(loader)

    assert run_ranks(2, rank) == [{"seen#rows": 3.0, "seen#sum": 3.0}] * 2


def test_a_rank_with_an_empty_dataloader_is_told_so(config):
    def rank() -> str:
        evaluator = Evaluator(torch.nn.Linear(1, 1), metrics={"seen": Rows()}, eval_fn=_first_tokens, config=config)
        try:
            evaluator.eval([{"input_ids": torch.tensor([[1]])}] if setup_distribution(config).rank == 0 else [])
        except DataError as error:
            return str(error)
        return "no error"

    messages = run_ranks(2, rank)
    assert all("rank 1" in message and "empty" in message for message in messages), messages


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_row_counts_once_in_the_order_of_the_dataset(ranks, config):
    """Seven rows, two a batch: the last global batch is uneven on any number of ranks."""

    def rank() -> tuple[dict[str, float], list[int], int]:
        calls = []

        def count(evaluator, batch):
            calls.append(1)
            return _first_tokens(evaluator, batch)

        metric = Rows(gather_result=True)
        evaluator = Evaluator(torch.nn.Linear(1, 1), _numbered(7), None, {"seen": metric}, count, config)
        return evaluator.eval(), metric.rows, len(calls)

    for results, rows, calls in run_ranks(ranks, rank):
        assert results == {"seen#rows": 7.0, "seen#sum": 21.0}
        assert rows == list(range(7))
        assert calls == math.ceil(7 / (2 * ranks))


def test_rows_of_padding_inside_a_batch_never_count(bigram):
    """A loader that pads its last batch says how many rows are real."""
    batch = ColliePadder()(_numbered(4))
    evaluator = Evaluator(bigram, metrics={"seen": Rows()}, eval_fn=_first_tokens)
    assert evaluator.eval([MicroBatch(batch=batch, rows=3)]) == {"seen#rows": 3.0, "seen#sum": 3.0}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"metrics": [PPLMetric()]}, "metrics must be a dict"),
        ({"metrics": {"ppl": PPLMetric}}, r"metrics\['ppl'\] must be a BaseMetric"),
    ],
)
def test_bad_arguments_are_refused_at_once(bigram, arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Evaluator(bigram, _numbered(1), **arguments)


def test_bad_input_gets_a_sentence(bigram):
    with pytest.raises(ConfigError, match="dataset=None"):
        Evaluator(bigram, eval_fn=_first_tokens).eval()
    with pytest.raises(DataError, match="0 rows"):
        Evaluator(bigram, eval_fn=_first_tokens).eval([])
    with pytest.raises(DataError, match="dict of tensors or lists, and the dataloader gave a tuple"):
        Evaluator(bigram, eval_fn=_first_tokens).eval([(1, 2)])
    with pytest.raises(ConfigError, match="eval_fn must return a dict"):
        Evaluator(bigram, _numbered(1), eval_fn=lambda *_: 3).eval()
    with pytest.raises(DataError, match="needs labels or input_ids"):
        Evaluator(bigram, [{"text": "no ids"}]).eval()
