"""Length-grouped sampling: less padding, another order every epoch, the longest first, and exact places."""

import numpy as np
import pytest

from collie.data import CollieDataLoader, CollieDatasetForTraining, LengthGroupedSampler
from collie.interfaces import ConfigError, DataError


def _rows(count=400):
    lengths = np.random.default_rng(5).geometric(1 / 40, size=count) + 1
    return [{"input_ids": [index % 90 + 3] * int(length)} for index, length in enumerate(lengths)]


def _padding(loader):
    batches = [m.batch["attention_mask"] for step in loader.iterate(0) for m in step]
    return 1 - sum(int(mask.sum()) for mask in batches) / sum(mask.numel() for mask in batches)


@pytest.mark.parametrize("made", [list, CollieDatasetForTraining])
def test_less_of_a_batch_is_padding(made):
    """A geometric spread of lengths, eight rows a micro-batch: from more than half of a batch to less than a tenth."""
    rows = made(_rows())
    plain = _padding(CollieDataLoader(rows, 8, shuffle=True))
    grouped = _padding(CollieDataLoader(rows, 8, group_by_length=True))
    assert plain > 0.5 and grouped < 0.1


def test_each_row_once_in_another_order_every_epoch_the_longest_first():
    rows = _rows(397)
    lengths = np.array([len(row["input_ids"]) for row in rows])
    sampler = LengthGroupedSampler(lengths, 4, seed=3)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders.append(np.array(list(sampler)))
        assert sorted(orders[-1]) == list(range(397))
        assert lengths[orders[-1][0]] == lengths.max()
        steps = lengths[orders[-1][:396]].reshape(-1, 4)
        means = steps.mean(1)[1:]
        assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3  # lengths do not follow the training's time
    assert not np.array_equal(*orders)
    again = LengthGroupedSampler(lengths, 4, seed=3)
    assert list(again) == orders[0].tolist() and list(LengthGroupedSampler(lengths, 4, seed=4)) != orders[0].tolist()
    assert sorted(LengthGroupedSampler(lengths[:3], 4, seed=3)) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_are_the_same_in_every_layout_and_from_every_place(workers):
    rows = _rows(50)

    def steps(dp, micro, accumulation, start=0, workers=0):
        loaders = [
            CollieDataLoader(
                rows, micro, accumulation, group_by_length=True, dp_rank=r, dp_size=dp, num_workers=workers
            )
            for r in range(dp)
        ]
        ranks = [
            [[m.batch["input_ids"][: m.rows, 0].tolist() for m in step] for step in loader.iterate(1, start)]
            for loader in loaders
        ]
        named = [[loader.rows_at(1, step) for step in range(start, len(loader))] for loader in loaders]
        found = [
            [row for rank in step for micro_batch in rank for row in micro_batch] for step in zip(*ranks, strict=True)
        ]
        numbers = [
            [row for rank in step for micro_batch in rank for row in micro_batch] for step in zip(*named, strict=True)
        ]
        assert [[row % 90 + 3 for row in step] for step in numbers] == found
        return found

    one = steps(1, 8, 1)
    assert steps(2, 2, 2) == one
    assert steps(4, 2, 1, start=3, workers=workers) == one[3:]


def test_what_has_no_lengths_or_two_orders():
    with pytest.raises(DataError, match="row 1 has no input_ids"):
        CollieDataLoader([{"input_ids": [1]}, {"text": "a"}], 1, group_by_length=True)
    with pytest.raises(ConfigError, match="sampler and group_by_length=True"):
        CollieDataLoader(_rows(3), 1, group_by_length=True, sampler=[0, 1, 2])
