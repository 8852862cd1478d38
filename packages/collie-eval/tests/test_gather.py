"""Rows of all ranks: in rank order, of any shape, and untouched where there is one rank."""

from typing import Any

import pytest
import torch
from torch import tensor

from collie.config import CollieConfig
from collie.metrics import BaseMetric
from collie.parallel import setup_distribution
from collie.testing import run_ranks


class _Keep(BaseMetric):
    def update(self, result: dict[str, Any]) -> None: ...

    def get_metric(self) -> None: ...


def _gathered(results: list[dict[str, Any]], **sizes: int) -> list[dict[str, Any]]:
    """What each rank gets when rank r brings results[r]."""

    def rank() -> dict[str, Any]:
        config = CollieConfig()
        for name, size in sizes.items():
            setattr(config, name, size)
        topology = setup_distribution(config)
        return _Keep().gather(results[topology.rank])

    return run_ranks(len(results), rank)


def test_one_rank_gets_its_own_result_unchanged():
    result = {"loss_sum": tensor(3.5), "pred": ["a"], "tokens": 4}
    assert _Keep().gather(result) == result


@pytest.mark.parametrize("ranks", [2, 3])
def test_tensors_and_lists_come_in_rank_order_on_every_rank(ranks):
    """Rank r brings r + 1 rows: different lengths, one order."""
    results = [{"x": torch.full((r + 1, 2), r), "pred": [f"{r}{i}" for i in range(r + 1)]} for r in range(ranks)]
    for got in _gathered(results):
        assert got["x"].tolist() == [[r, r] for r in range(ranks) for _ in range(r + 1)]
        assert got["pred"] == [f"{r}{i}" for r in range(ranks) for i in range(r + 1)]


def test_rows_of_different_width_come_as_a_list_of_rows():
    wide, narrow = tensor([[1, 2, 3], [4, 5, 6]]), tensor([[7, 8]])
    for got in _gathered([{"ids": wide}, {"ids": narrow}]):
        assert [row.tolist() for row in got["ids"]] == [[1, 2, 3], [4, 5, 6], [7, 8]]


def test_scalars_become_a_row_for_each_rank():
    for got in _gathered([{"loss_sum": tensor(1.5), "tokens": 3}, {"loss_sum": tensor(2.0), "tokens": 5}]):
        assert got["loss_sum"].tolist() == [1.5, 2.0]
        assert got["tokens"] == [3, 5]


def test_a_rank_without_rows_does_not_decide_the_shape():
    """An empty part of another width (a filler's) neither breaks the join nor turns it into a list."""
    results = [{"ids": tensor([[1, 2]])}, {"ids": torch.zeros(0, 5, dtype=torch.long)}, {"pred": ["only here"]}]
    for got in _gathered(results):
        assert got["ids"].tolist() == [[1, 2]]
        assert got["pred"] == ["only here"]


def test_only_data_parallel_ranks_take_part():
    """With tp 2 the two ranks of a replica hold the same rows: ranks 0 and 2 exchange, and 1 and 3."""
    results = [{"pred": [f"rank {rank}"]} for rank in range(4)]
    got = _gathered(results, tp_size=2)
    assert [result["pred"] for result in got] == [["rank 0", "rank 2"], ["rank 1", "rank 3"]] * 2
