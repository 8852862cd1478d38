"""Candidates scored as by hand, letters read from answers, and the same choice in every layout."""

import pytest
import torch

import collie.controller.evaluator
from collie.config import CollieConfig
from collie.controller.evaluator import EvaluatorForClassification
from collie.data import ColliePadder
from collie.interfaces import ConfigError, DataError
from collie.metrics import AccuracyMetric, BaseMetric, ClassifyFPreRecMetric
from collie.models import CollieModelForCausalLM
from collie.testing import RankError, run_ranks, toy_llama_config


class Rows(BaseMetric):
    """Keeps pred and target of every row."""

    def __init__(self):
        super().__init__(gather_result=True)

    def reset(self):
        self.pred, self.target = [], []

    def update(self, result):
        self.pred += [getattr(each, "item", lambda each=each: each)() for each in result["pred"]]
        self.target += [getattr(each, "item", lambda each=each: each)() for each in result["target"]]

    def get_metric(self):
        return float(len(self.pred))


def _question(given: list[int], candidates: list[list[int]], target: int) -> dict:
    """A row as CollieDatasetForClassification makes it in the style "harness"."""
    return {
        "input_ids": [given + each for each in candidates],
        "attention_mask": [[1] * len(given + each) for each in candidates],
        "labels": [[-100] * len(given) + each for each in candidates],
        "target": target,
    }


def _questions(rows: int) -> list[dict]:
    """Two to four candidates of one to four tokens each, in an order that follows from the row's number."""
    draw = torch.Generator().manual_seed(3)

    def tokens(least: int, most: int) -> list[int]:
        count = int(torch.randint(least, most + 1, (1,), generator=draw))
        return torch.randint(3, 29, (count,), generator=draw).tolist()

    return [
        _question(tokens(1, 5), [tokens(1, 4) for _ in range(2 + row % 3)], target=row % (2 + row % 3))
        for row in range(rows)
    ]


def _by_hand(model, row, mean=False) -> int:
    """One forward a candidate, without padding."""
    scores = []
    for ids, labels in zip(row["input_ids"], row["labels"], strict=True):
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        said = [float(logs[at - 1, label]) for at, label in enumerate(labels) if label != -100]
        scores.append(sum(said) / len(said) if mean else sum(said))
    return scores.index(max(scores))


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_candidate_with_the_best_likelihood_is_chosen(bigram, mean, batch_size):
    rows, metric = _questions(9), Rows()
    EvaluatorForClassification(
        bigram,
        rows,
        metrics={"rows": metric},
        config=CollieConfig(eval_batch_size=batch_size),
        score="mean" if mean else "sum",
    ).eval()
    assert metric.pred == [_by_hand(bigram, row, mean) for row in rows]
    assert metric.target == [row["target"] for row in rows]
    assert max(len(ids) for ids in bigram.seen[: len(bigram.seen) // 2]) <= batch_size


def test_sum_and_mean_differ_where_candidates_differ_in_length(bigram):
    rows = _questions(30)
    assert [_by_hand(bigram, row) for row in rows] != [_by_hand(bigram, row, mean=True) for row in rows]


def test_what_it_reports(bigram):
    rows = _questions(7)
    right = sum(_by_hand(bigram, row) == row["target"] for row in rows)
    results = EvaluatorForClassification(bigram, rows, collate_fn=ColliePadder(padding_left=True)).eval()
    assert results == {"acc#acc": right / 7, "acc#correct": right, "acc#total": 7.0}


def test_both_spellings_are_one_class():
    assert collie.controller.evaluator.EvaluatorForClassfication is EvaluatorForClassification


def test_the_first_letter_of_the_answer_is_the_prediction(bigram, letters):
    """The toy goes on through the alphabet: what follows "…a" is "bcd"."""
    rows = [{"input_ids": letters.encode(text), "target": target} for text, target in [("xa", 1), ("b", 1), ("z", 0)]]
    metrics = {"acc": AccuracyMetric(), "rows": Rows(), "f": ClassifyFPreRecMetric()}
    results = EvaluatorForClassification(bigram, rows, letters, metrics, config=CollieConfig(eval_batch_size=2)).eval()
    assert (metrics["rows"].pred, metrics["rows"].target) == (["B", "C", ""], ["B", "B", "A"])
    assert results["acc#correct"] == 1.0 and results["f#f"] == pytest.approx(1 / 3)
    assert bigram.settings.max_new_tokens == 3 and bigram.settings.do_sample is False


def test_a_whole_answer_may_be_the_prediction(bigram, letters):
    metric = Rows()
    EvaluatorForClassification(
        bigram,
        [{"input_ids": letters.encode("a"), "target": "bc"}],
        letters,
        {"rows": metric},
        only_latin=False,
        max_new_tokens=2,
    ).eval()
    assert (metric.pred, metric.target) == (["bc"], ["bc"])


def _model(**sizes):
    config = CollieConfig(model_config=toy_llama_config(), eval_batch_size=2, **sizes)
    config.initization_method, config.initization_method_params = "normal", {"std": 0.4}
    return CollieModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("ranks", "sizes"), [(2, {}), (3, {}), (2, {"tp_size": 2}), (2, {"pp_size": 2}), (4, {"tp_size": 2})]
)
def test_every_layout_chooses_as_one_process(ranks, sizes, letters):
    """Seven rows of different numbers of candidates, two a batch: uneven rows, uneven forward passes."""

    def rank(**sizes):
        model, metrics, lettered = _model(**sizes), {"acc": AccuracyMetric(), "rows": Rows()}, Rows()
        results = EvaluatorForClassification(model, _questions(7), metrics=metrics).eval()
        prompts = [{"input_ids": letters.encode("abcdefg"[: 7 - row]), "target": row} for row in range(7)]
        lettered_results = EvaluatorForClassification(model, prompts, _AnyLetter(), {"rows": lettered}).eval()
        return results, metrics["rows"].pred, lettered_results, lettered.pred

    (alone,) = run_ranks(1, rank)
    assert len(set(alone[1])) > 1 and len(set(alone[3])) > 2
    assert run_ranks(ranks, lambda: rank(**sizes)) == [alone] * ranks


class _AnyLetter:
    """Every token is a letter."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(ord("a") + token % 26) for token in ids)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"input_ids": [[3, 4], [3, 5]], "target": 0}, "needs labels of every candidate"),
        (_question([3], [[4]], 0), "Row 0 of the batch has 1 candidate"),
        (_question([3], [[4], [5]], 2), "target 2 and 2 candidates"),
        (_question([3], [[4], []], 0), "without a token to score"),
        ({"input_ids": [3, 4]}, "needs target"),
    ],
)
def test_rows_that_cannot_be_used_get_a_sentence(bigram, letters, row, sentence):
    with pytest.raises(DataError, match=sentence):
        EvaluatorForClassification(bigram, [row], letters).eval()


def test_a_bad_row_of_one_rank_is_told_on_all(bigram):
    """No rank waits for another that has raised."""
    rows = [*_questions(1), _question([3], [[4]], 0)]

    def rank():
        try:
            EvaluatorForClassification(bigram, rows, config=CollieConfig(eval_batch_size=1)).eval()
        except DataError as error:
            return str(error)

    try:
        said = run_ranks(2, rank, timeout=20)
    except RankError as error:
        pytest.fail(str(error))
    assert all("Data-parallel rank 1: Row 0 of the batch has 1 candidate" in each for each in said)


def test_options_that_cannot_work_are_refused(bigram):
    with pytest.raises(ConfigError, match="sum"):
        EvaluatorForClassification(bigram, score="max")
    with pytest.raises(ConfigError, match="1 or more"):
        EvaluatorForClassification(bigram, max_new_tokens=0)
    with pytest.raises(ConfigError, match="tokenizer"):
        EvaluatorForClassification(bigram, [{"input_ids": [3], "target": 0}]).eval()
