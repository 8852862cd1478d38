"""Perplexity and decoded text, as metrics by themselves."""

import math
from types import SimpleNamespace

import pytest
import torch

from collie.config import CollieConfig
from collie.interfaces import DataError
from collie.metrics import DecodeMetric, PPLMetric
from collie.parallel import Topology, setup_distribution
from collie.testing import run_ranks


def _serve(metric, tokenizer=None, topology=None):
    """Give the metric what an evaluator would."""
    metric.construct(SimpleNamespace(tokenizer=tokenizer, topology=topology or Topology()))
    return metric


def test_ppl_weighs_tokens_not_batches():
    metric = PPLMetric()
    metric.update({"loss_sum": torch.tensor(9.0), "tokens": 9})
    metric.update({"loss_sum": 4.0, "tokens": torch.tensor(1)})
    assert metric.get_metric() == pytest.approx(math.exp(1.3), rel=1e-12)


def test_ppl_forgets_on_reset():
    metric = PPLMetric()
    metric.update({"loss_sum": 50.0, "tokens": 1})
    metric.reset()
    metric.update({"loss_sum": 2.0, "tokens": 2})
    assert metric.get_metric() == pytest.approx(math.e, rel=1e-12)


def test_ppl_is_infinite_where_exp_overflows():
    metric = PPLMetric()
    metric.update({"loss_sum": 1000.0, "tokens": 1})
    assert metric.get_metric() == math.inf


def test_ppl_without_a_target_token_is_an_error():
    metric = PPLMetric()
    metric.update({"loss_sum": 0.0, "tokens": 0})
    with pytest.raises(DataError, match="0 target tokens"):
        metric.get_metric()


def test_ppl_names_the_keys_that_it_misses():
    with pytest.raises(DataError, match=r"loss_sum and tokens.*has pred"):
        PPLMetric().update({"pred": []})


@pytest.mark.parametrize("gather", [False, True])
def test_ppl_of_ranks_is_that_of_all_tokens(gather):
    """Reduced in get_metric or gathered before update: the sums of all ranks, once."""

    def rank() -> float:
        topology = setup_distribution(CollieConfig())
        metric = _serve(PPLMetric(gather_result=gather), topology=topology)
        result = {"loss_sum": torch.tensor(float(topology.rank)), "tokens": 10 ** (2 - topology.rank)}
        metric.update(metric.gather(result) if gather else result)
        return metric.get_metric()

    assert run_ranks(3, rank) == pytest.approx([math.exp(3.0 / 111)] * 3, rel=1e-6)


def test_decode_prints_a_line_for_each_row(capsys):
    metric = DecodeMetric()
    metric.update({"pred": ["one", "two\nlines"]})
    assert capsys.readouterr().out == "decoded: one\ndecoded: two\\nlines\n"
    assert metric.get_metric() == ["one", "two\nlines"]


def test_decode_is_silent_unless_verbose_and_on_other_ranks(capsys):
    DecodeMetric(verbose=False).update({"pred": ["one"]})
    _serve(DecodeMetric(), topology=Topology(rank=1, world_size=2, dp_size=2)).update({"pred": ["one"]})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "pred",
    [torch.tensor([[3, 4, 2], [5, -100, -100]]), [[3, 4, 2], [5]], [torch.tensor([3, 4, 2]), torch.tensor([5])]],
    ids=["tensor", "lists", "tensors"],
)
def test_decode_turns_ids_into_text(pred, letters):
    metric = _serve(DecodeMetric(verbose=False), tokenizer=letters)
    metric.update({"pred": pred})
    assert metric.get_metric() == ["ab", "c"]


@pytest.mark.parametrize("pred", ["ab", torch.tensor([3, 4]), [3, 4]], ids=["text", "tensor", "list"])
def test_decode_takes_a_single_row(pred, letters):
    metric = _serve(DecodeMetric(verbose=False), tokenizer=letters)
    metric.update({"pred": pred})
    assert metric.get_metric() == ["ab"]


def test_decode_saves_one_line_a_row_and_appends(tmp_path):
    path = tmp_path / "new" / "texts.txt"
    metric = DecodeMetric(verbose=False, save_to_file=True, save_path=str(path))
    metric.update({"pred": ["你好\n", "b"]})
    metric.update({"pred": ["c"]})
    assert path.read_text(encoding="utf-8") == "你好\\n\nb\nc\n"


def test_decode_says_what_it_needs():
    with pytest.raises(DataError, match="no tokenizer"):
        DecodeMetric().update({"pred": [[3, 4]]})
    with pytest.raises(DataError, match="needs pred"):
        DecodeMetric().update({"tokens": 3})
    with pytest.raises(DataError, match="float"):
        DecodeMetric().update({"pred": [0.5]})
