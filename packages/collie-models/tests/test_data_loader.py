"""The loader: the same rows a step in every layout, as many calls on every rank, no row lost or counted twice."""

import math
import os
import time
import tracemalloc
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

from collie.data import (
    CollieBatchSampler,
    CollieDataLoader,
    CollieDatasetForTraining,
    ColliePadder,
    SeededSampler,
    evaluation_batches,
)
from collie.interfaces import ConfigError, DataError

LAYOUTS = [(1, 1, 8), (1, 2, 4), (1, 8, 1), (2, 2, 2), (4, 1, 2), (4, 2, 1), (8, 1, 1)]  # dp, micro, accumulation


def _rows(n):
    """Row i holds i + 1 tokens, the first of which is i: a batch can tell which rows it is made of."""
    return [{"input_ids": [i] + [7] * i, "labels": [i] + [7] * i} for i in range(n)]


def _joined(lists):
    return list(chain.from_iterable(lists))


def _first(batch):
    return batch["input_ids"][:, 0].tolist()


def _steps(n, dp, micro, accumulation, epoch=0, start=0, **options):
    """For each step, for each rank, its micro-batches as (row numbers, rows that count)."""
    loaders = [
        CollieDataLoader(_rows(n), micro, accumulation, dp_rank=rank, dp_size=dp, **options) for rank in range(dp)
    ]
    ranks = [[[(_first(m.batch), m.rows) for m in step] for step in loader.iterate(epoch, start)] for loader in loaders]
    assert {len(steps) for steps in ranks} == {len(loaders[0]) - start}
    return list(zip(*ranks, strict=True))


def _counted(step):
    """The rows of a step that count, in the order of ranks and micro-batches."""
    return [row for rank in step for rows, count in rank for row in rows[:count]]


@pytest.mark.parametrize("n", [64, 67, 71, 3])
@pytest.mark.parametrize(("dp", "micro", "accumulation"), LAYOUTS[1:])
def test_a_step_sees_the_same_rows_in_every_layout(n, dp, micro, accumulation):
    """Even in the same order: ranks take contiguous blocks of the step."""
    one = [_counted(step) for step in _steps(n, *LAYOUTS[0], shuffle=True, seed=3, epoch=2)]
    other = [_counted(step) for step in _steps(n, dp, micro, accumulation, shuffle=True, seed=3, epoch=2)]
    assert one == other and len(one) == math.ceil(n / 8)
    assert sorted(_joined(one)) == list(range(n)) and (n == 3 or _joined(one) != list(range(n)))


@pytest.mark.parametrize("n", [1, 3, 8, 13, 15, 16])
@pytest.mark.parametrize(("dp", "micro", "accumulation"), LAYOUTS)
def test_every_rank_makes_the_same_calls(n, dp, micro, accumulation):
    """Also in a last step that is not full: its rows are spread to within one, and fillers do not count."""
    for step in _steps(n, dp, micro, accumulation):
        assert all(len(rank) == accumulation for rank in step)
        counts = [sum(count for _, count in rank) for rank in step]
        assert max(counts) - min(counts) <= 1
        for rank in step:
            assert all(len(rows) == max(count, 1) and count <= micro for rows, count in rank)


def test_a_filler_is_a_whole_row():
    [step] = CollieDataLoader(_rows(2), 1, 2, dp_rank=1, dp_size=2).iterate(0)
    assert [m.rows for m in step] == [1, 0]
    assert step[0].batch["input_ids"].tolist() == [[1, 7]]
    assert step[1].batch["input_ids"].tolist() == step[1].batch["labels"].tolist() == [[0]]


def test_drop_last_leaves_out_what_is_not_full():
    steps = _steps(21, 2, 2, 2, drop_last=True)
    assert [len(_counted(step)) for step in steps] == [8, 8]
    assert _joined(map(_counted, steps)) == list(range(16))
    with pytest.raises(
        ConfigError, match=r"7 rows make no step of dp_size=2 × batch_size=2 × accumulation_steps=2 = 8"
    ):
        CollieDataLoader(_rows(7), 2, 2, drop_last=True, dp_size=2)


def test_epochs_and_seeds_give_their_own_order_again_and_again():
    loader = CollieDataLoader(_rows(40), 4, shuffle=True, seed=5)

    def order(loader, epoch):
        return [row for step in loader.iterate(epoch) for m in step for row in _first(m.batch)]

    first, second = order(loader, 0), order(loader, 1)
    assert first != second and order(loader, 0) == first
    assert order(CollieDataLoader(_rows(40), 4, shuffle=True, seed=5), 1) == second
    assert order(CollieDataLoader(_rows(40), 4, shuffle=True, seed=6), 0) != first
    assert order(CollieDataLoader(_rows(40), 4, shuffle=True, seed=-1), 0) != first
    assert order(CollieDataLoader(_rows(40), 4), 3) == list(range(40))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_position_is_an_epoch_and_a_step(workers):
    """Going on at step 3 gives what the whole epoch gives from there; also the last step, which is not full."""
    options = {"shuffle": True, "num_workers": workers, "dp_rank": 1, "dp_size": 2}
    loader = CollieDataLoader(_rows(45), 2, 2, **options)
    whole = [[(_first(m.batch), m.rows) for m in step] for step in loader.iterate(4)]
    rest = [[(_first(m.batch), m.rows) for m in step] for step in loader.iterate(4, start_step=3)]
    assert rest == whole[3:] and len(whole) == len(loader) == 6
    assert list(loader.iterate(4, start_step=6)) == []
    for wrong in (7, -1):
        with pytest.raises(ConfigError, match=f"start_step={wrong} is not in an epoch of 6 steps"):
            loader.iterate(4, start_step=wrong)


def test_a_pass_keeps_its_epoch_when_another_begins():
    loader = CollieDataLoader(_rows(24), 4, shuffle=True)
    expected = [_first(m.batch) for step in loader.iterate(0) for m in step]
    passing = loader.iterate(0)
    begun = [next(passing)]
    list(loader.iterate(1, start_step=2))
    assert [_first(m.batch) for step in [*begun, *passing] for m in step] == expected


def test_alone_it_is_read_like_a_torch_loader():
    """A batch a step; each pass a new epoch; `set_epoch` goes back."""
    loader = CollieDataLoader(_rows(10), 4, shuffle=True)
    passes = [[_first(batch) for batch in loader] for _ in range(2)]
    assert [len(batch) for batch in passes[0]] == [4, 4, 2] and len(loader) == 3
    assert sorted(_joined(passes[0])) == sorted(_joined(passes[1])) == list(range(10))
    assert passes[0] != passes[1]
    loader.set_epoch(0)
    assert [_first(batch) for batch in loader] == passes[0]
    assert passes[1] == [_first(m.batch) for step in loader.iterate(1) for m in step]


def test_alone_with_accumulation_a_step_is_one_batch():
    loader = CollieDataLoader(_rows(10), 2, 2)
    assert [_first(batch) for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3


def test_a_dataset_of_the_toolkit_and_the_default_padder():
    dataset = CollieDatasetForTraining(_rows(5)[1:])
    [batch] = CollieDataLoader(dataset, 8)
    assert batch["attention_mask"].sum(1).tolist() == [2, 3, 4, 5]
    assert batch["labels"][0].tolist() == [1, 7, -100, -100, -100]


def test_a_sampler_of_your_own_gives_the_order():
    order = list(range(9, -1, -1))
    loaders = [CollieDataLoader(_rows(10), 2, sampler=order, dp_rank=r, dp_size=2) for r in range(2)]
    steps = zip(*(loader.iterate(0) for loader in loaders), strict=True)
    assert [_first(m.batch) for ranks in steps for [m] in ranks] == [[9, 8], [7, 6], [5, 4], [3, 2], [1], [0]]

    class ByEpoch(SequentialSampler):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter(np.roll(np.arange(10), self.epoch).tolist())

    loader = CollieDataLoader(_rows(10), 10, sampler=ByEpoch(_rows(10)))
    assert _first(next(loader.iterate(3))[0].batch) == [7, 8, 9, 0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.0}, "batch_size=2.0"),
        ({"accumulation_steps": 0}, "accumulation_steps=0"),
        ({"dp_size": 0}, "dp_size=0"),
        ({"dp_rank": 2, "dp_size": 2}, "dp_rank=2 is not one of dp_size=2"),
        ({"dp_rank": -1}, "dp_rank=-1"),
        ({"group_by_length": True, "sampler": [0]}, "sampler and group_by_length=True"),
        ({"shuffle": True, "sampler": [0]}, "sampler and shuffle=True"),
        ({"data_efficiency_config": {"data_sampling": {"enabled": True}}}, "DeepSpeed's curricula choose rows"),
        ({"sampler": DistributedSampler([0, 1], 2, 0)}, "DistributedSampler, which splits the rows"),
    ],
)
def test_values_that_cannot_be(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        CollieDataLoader(_rows(4), **{"batch_size": 1, **options})


def test_datasets_that_cannot_be():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(_rows(4))

    for dataset, sentence in (
        ([], "no rows"),
        (Stream(), "a Stream, which has no length"),
        (iter([1]), "list_iterator"),
    ):
        with pytest.raises(DataError, match=sentence):
            CollieDataLoader(dataset, 1)
        with pytest.raises(DataError, match=sentence):
            evaluation_batches(dataset, 1, 0, 1, ColliePadder())
    with pytest.raises(DataError, match="ended in step 1, before the 4 rows"):
        list(CollieDataLoader(_rows(4), 2, sampler=_Short()).iterate(0))


class _Short(SequentialSampler):
    def __init__(self):
        super().__init__(range(4))

    def __iter__(self):
        return iter([0, 1, 2])


class _Random:
    """Draws a number where it is read, as an augmentation would."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"input_ids": [index], "draw": torch.rand(()).item(), "numpy": np.random.rand(), "pid": os.getpid()}


def test_workers_read_elsewhere_with_numbers_of_their_own():
    """They follow from seed, rank and position: a pass that begins in the middle draws what the whole one did there."""

    def read(loader, rank, epoch=0, start=0):
        batches = [m.batch for step in loader.iterate(epoch, start) for m in step]
        assert [_first(b) for b in batches] == ([[0, 1], [4, 5]] if rank == 0 else [[2, 3], [6, 7]])[start:]
        pids.update(pid for b in batches for pid in b["pid"].tolist())
        return [(b["draw"].tolist(), b["numpy"].tolist()) for b in batches]

    pids = set()
    state = torch.random.get_rng_state()
    loader, again, other = (CollieDataLoader(_Random(), 2, num_workers=1, dp_rank=r, dp_size=2) for r in (0, 0, 1))
    first = read(loader, 0)
    assert read(loader, 0, epoch=1) != first
    assert os.getpid() not in pids and len(pids) == 1
    assert read(again, 0, start=1) == first[1:]
    assert read(again, 0) == first != read(other, 1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_reading_leaves_the_random_numbers_of_the_model_alone():
    """Else an evaluation between two steps would change the dropout of all that follow."""
    state = torch.random.get_rng_state()
    list(CollieDataLoader(_rows(8), 2, shuffle=True))
    list(evaluation_batches(_rows(8), 2, 0, 1, ColliePadder()))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_bad_row_in_a_worker_is_the_same_sentence():
    rows = [{"input_ids": [1], "labels": [1]}, {"input_ids": [1]}]
    with pytest.raises(DataError, match=r"differs from row 0 in the fields \['labels'\]"):
        list(CollieDataLoader(rows, 2, num_workers=1))


def test_the_arguments_of_existing_scripts_by_their_places():
    """dataset, batch_size, accumulation_steps, shuffle, pin_memory, collate_fn, num_workers, sampler, drop_last, …"""
    loader = CollieDataLoader(_rows(9), 2, 2, False, False, ColliePadder(), 0, None, True, {})
    assert [_first(batch) for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    sampler = CollieBatchSampler(SequentialSampler(range(5)), 2, "normal")
    sampler.set_epoch(1)
    assert list(sampler) == [[0, 1], [2, 3], [4]]


def test_an_epoch_of_a_million_rows_begins_at_once_anywhere():
    """Without a Python object for each row: the order takes 8 MB, and another place of the same epoch nothing more."""

    class Numbers:
        def __len__(self):
            return 1_000_000

        def __getitem__(self, index):
            return {"input_ids": [index, 1]}

    loader = CollieDataLoader(Numbers(), 4, 2, shuffle=True)
    next(loader.iterate(0))  # whatever is imported at the first use is
    tracemalloc.start()
    began = time.perf_counter()
    [first, _] = next(loader.iterate(1, start_step=100_000))
    took = time.perf_counter() - began
    assert _first(first.batch) == loader.rows_at(1, 100_000)[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 1 and peak < 20 * 2**20  # lists of numbers would take 40 MB, and walking to the place would be slow


def test_a_data_worker_shares_a_table_of_a_million_rows():
    """Under 100 MB of its own over 64 MB of tokens, after reading all over it."""

    class Table:
        def __init__(self):
            self.tokens = np.ones((1_000_000, 16), dtype=np.int32)

        def __len__(self):
            return len(self.tokens)

        def __getitem__(self, index):
            return {"input_ids": self.tokens[index].tolist(), "pid": os.getpid()}

    steps = CollieDataLoader(Table(), 64, shuffle=True, num_workers=1).iterate(0)
    for _ in range(100):
        [batch] = next(steps)
    memory = Path(f"/proc/{int(batch.batch['pid'][0])}/smaps_rollup").read_text().splitlines()
    [own] = [int(line.split()[1]) for line in memory if line.startswith("Private_Dirty")]
    assert own < 100 * 1024  # KiB


def test_the_batch_sampler_in_a_torch_loader():
    sampler = CollieBatchSampler(SeededSampler(7, shuffle=False, seed=0), 2, accumulation_steps=2)
    loader = DataLoader(list(range(7)), batch_sampler=sampler, collate_fn=list)
    assert list(loader) == [[0, 1], [2, 3], [4, 5], [6]] and len(loader) == 4
    assert [sampler.rows_of(step) for step in range(sampler.steps)] == [[2, 2], [2, 1]]
    dropped = CollieBatchSampler(SequentialSampler(range(7)), 2, "drop", accumulation_steps=2)
    assert list(dropped) == [[0, 1], [2, 3]]
    sampler.set_epoch(0, start_step=1)
    assert list(sampler) == [[4, 5], [6]] and len(sampler) == 2
    assert len(list(CollieBatchSampler(RandomSampler(range(7)), 2))) == 4
    with pytest.raises(ConfigError, match="last_batch='cycle'"):
        CollieBatchSampler(range(7), 2, "cycle")


@pytest.mark.parametrize("dp", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 7, 12, 13])
def test_evaluation_gathers_in_the_order_of_the_dataset(dp, n):
    """What ranks gather batch by batch, in rank order and without fillers, is the dataset, each row once."""
    ranks = [list(evaluation_batches(_rows(n), 2, rank, dp, ColliePadder(padding_left=True))) for rank in range(dp)]
    assert {len(batches) for batches in ranks} == {math.ceil(n / (2 * dp))}
    gathered = [
        row[row != 0].tolist() or [0]
        for batches in zip(*ranks, strict=True)
        for micro in batches
        for row in micro.batch["input_ids"][: micro.rows]
    ]
    expected = [[i, *[7] * i] if i else [0] for i in range(n)]
    assert gathered == expected
    assert all(len(micro.batch["input_ids"]) == max(micro.rows, 1) for batches in ranks for micro in batches)


def test_evaluation_reads_through_workers_too():
    batches = evaluation_batches(_rows(5), 2, 0, 1, ColliePadder(), num_workers=1)
    assert [(_first(m.batch), m.rows) for m in batches] == [([0, 1], 2), ([2, 3], 2), ([4], 1)]
