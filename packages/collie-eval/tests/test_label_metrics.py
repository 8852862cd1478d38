"""Metrics of labels against scikit-learn, over generated rows, in every way that labels come."""

import random
from types import SimpleNamespace

import pytest
import torch

from collie.config import CollieConfig
from collie.interfaces import ConfigError, DataError
from collie.metrics import AccuracyMetric, ClassifyFPreRecMetric
from collie.parallel import setup_distribution
from collie.testing import run_ranks

WORDS = ["正面", "负面", "neutral", "other"]


def _labels(seed: int) -> tuple[list[int], list[int]]:
    """Up to 40 labels of up to 4 kinds, skewed, so that some are never predicted or never true."""
    draw = random.Random(seed)
    kinds, rows = draw.randint(1, 4), draw.randint(1, 40)
    true = [min(draw.randrange(kinds), draw.randrange(4)) for _ in range(rows)]
    return [label if draw.random() < 0.5 else draw.randrange(4) for label in true], true


@pytest.mark.parametrize("f_type", ["micro", "macro"])
@pytest.mark.parametrize("beta", [1, 0.5, 2])
@pytest.mark.parametrize("chinese", [False, True])
def test_f_precision_and_recall_are_scikit_learn_s(f_type, beta, chinese):
    sklearn = pytest.importorskip("sklearn.metrics")
    for seed in range(60):
        pred, true = _labels(seed)
        if chinese:
            pred, true = [WORDS[label] for label in pred], [WORDS[label] for label in true]
        metric = ClassifyFPreRecMetric(f_type=f_type, beta=beta, only_gross=False)
        for start in range(0, len(true), 7):
            metric.update({"pred": pred[start : start + 7], "target": true[start : start + 7]})
        got, labels = metric.get_metric(), sorted({*pred, *true})
        options = {"beta": beta, "labels": labels, "zero_division": 0}
        pre, rec, f, _ = sklearn.precision_recall_fscore_support(true, pred, average=f_type, **options)
        assert [got["pre"], got["rec"], got["f"]] == pytest.approx([pre, rec, f], abs=1e-12)
        single = sklearn.precision_recall_fscore_support(true, pred, average=None, **options)
        for at, label in enumerate(labels):
            names = (f"pre-{label}", f"rec-{label}", f"f-{label}")
            assert [got[name] for name in names] == pytest.approx([column[at] for column in single[:3]], abs=1e-12)


def test_f_precision_and_recall_by_hand():
    """Label 0: 2 of 3 predicted rightly, 2 of 2 found; label 1: 1 of 1, 1 of 2. Macro is their mean, by name or not."""
    result = {"pred": [0, 0, 0, 1], "target": [0, 0, 1, 1]}
    metric = ClassifyFPreRecMetric(f_type="macro", only_gross=False, tag_vocab=["no", "yes"])
    metric.update(result)
    got = metric.get_metric()
    assert [got["pre"], got["rec"]] == pytest.approx([(2 / 3 + 1) / 2, (1 + 1 / 2) / 2])
    assert [got["f-no"], got["f-yes"]] == pytest.approx([4 / 5, 2 / 3])
    gross = ClassifyFPreRecMetric()
    gross.update(result)
    assert gross.get_metric() == {"f": 0.75, "pre": 0.75, "rec": 0.75}


@pytest.mark.parametrize(
    ("pred", "target", "correct", "total"),
    [
        (torch.tensor([1, 2, 0]), torch.tensor([1, 2, 2]), 2, 3),
        (torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]), 1, 2),
        (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, -100], [3, 5]]), 2, 3),
        ([1, 2], [1, 1], 1, 2),
        (["A", "b"], ["A", "B"], 1, 2),
        (["A", "b"], [["C", "A"], ["B"]], 1, 2),
        ([torch.tensor([1, 2]), torch.tensor([3])], [torch.tensor([1, 2]), torch.tensor([4])], 2, 3),
        ([[1, 2], [3]], [[1, 2], [4]], 1, 2),
    ],
)
def test_accuracy_of_labels_in_every_form(pred, target, correct, total):
    metric = AccuracyMetric()
    metric.update({"pred": pred, "target": target})
    assert metric.get_metric() == {"acc": correct / total, "correct": correct, "total": total}


@pytest.mark.parametrize("gather", [False, True])
def test_ranks_see_what_one_process_sees(gather):
    """Rank r has r of the rows; the labels of every rank count once, on every rank."""
    pred, true = _labels(4)

    def rank():
        topology = setup_distribution(CollieConfig())
        results = []
        for metric in (AccuracyMetric(gather), ClassifyFPreRecMetric(gather, f_type="macro", only_gross=False)):
            metric.construct(SimpleNamespace(tokenizer=None, topology=topology))
            part = slice(0, 0) if topology.rank == 0 else slice(0, 5) if topology.rank == 1 else slice(5, None)
            result = {"pred": torch.tensor(pred[part]), "target": torch.tensor(true[part])}
            metric.update(metric.gather(result) if gather else result)
            results.append(metric.get_metric())
        return results

    (alone,) = run_ranks(1, lambda: _alone(pred, true))
    assert run_ranks(3, rank) == [alone] * 3


def _alone(pred, true):
    results = []
    for metric in (AccuracyMetric(), ClassifyFPreRecMetric(f_type="macro", only_gross=False)):
        metric.update({"pred": pred, "target": true})
        results.append(metric.get_metric())
    return results


@pytest.mark.parametrize("make", [AccuracyMetric, ClassifyFPreRecMetric])
def test_bad_rows_get_a_sentence(make):
    metric = make()
    for result, sentence in [
        ({"pred": [1]}, "needs pred and target .* use EvaluatorForClassification"),
        ({"pred": [1, 2], "target": [1]}, "2 rows of pred and 1 rows of target"),
        (
            {"pred": torch.zeros(2, 3, 4), "target": torch.zeros(2)},
            r"pred of shape \[2, 3, 4\] and target of shape \[2\]",
        ),
        ({"pred": "ab", "target": "ab"}, "tensors or lists"),
    ]:
        with pytest.raises(DataError, match=sentence):
            metric.update(result)
    metric.update({"pred": torch.tensor([1]), "target": torch.tensor([-100])})
    with pytest.raises(DataError, match="0 targets"):
        metric.get_metric()


def test_options_and_labels_that_cannot_be_used():
    with pytest.raises(ConfigError, match="weighted"):
        ClassifyFPreRecMetric(f_type="weighted")
    with pytest.raises(ConfigError, match="above 0"):
        ClassifyFPreRecMetric(beta=0)
    with pytest.raises(DataError, match="got a list"):
        ClassifyFPreRecMetric().update({"pred": [[1]], "target": [1]})
    metric = ClassifyFPreRecMetric(tag_vocab=["no", "yes"], only_gross=False)
    metric.update({"pred": [1], "target": [2]})
    with pytest.raises(DataError, match="label 2 has no name in tag_vocab, which has 2 names"):
        metric.get_metric()


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_a_target_of_minus_100_counts_in_no_form(kind):
    result = {"pred": kind([1, 2, 3, 0]), "target": kind([1, -100, 3, 1])}
    accuracy, f = AccuracyMetric(), ClassifyFPreRecMetric()
    accuracy.update(result)
    f.update(result)
    assert accuracy.get_metric() == {"acc": pytest.approx(2 / 3), "correct": 2, "total": 3}
    assert f.get_metric()["rec"] == pytest.approx(2 / 3)


def test_a_negative_label_has_no_name_in_a_list():
    """Counted from the end it would take the name, and the numbers, of another label."""
    metric = ClassifyFPreRecMetric(only_gross=False, tag_vocab=["no", "yes"])
    metric.update({"pred": [0, 1, -1], "target": [0, 1, 1]})
    with pytest.raises(DataError, match="label -1 has no name in tag_vocab, which has 2 names"):
        metric.get_metric()
