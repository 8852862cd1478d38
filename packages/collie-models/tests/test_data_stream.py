"""Streams: the same rows a step in every layout, with workers and from any place; what ends early or is bad says so."""

import itertools
import json
import os

import pytest
import torch
from torch.utils.data import DataLoader

from collie.data import CollieDataLoader, ColliePadder, CollieStream, evaluation_batches
from collie.interfaces import ConfigError, DataError


def _row(number):
    return {"input_ids": [number, *[7] * (1 + number % 3)]}


def _rows(count):
    """A function that makes a fresh generator of rows, each of which begins with its number."""

    def make():
        return map(_row, range(count))

    return make


class Skipping(list):
    """Rows that can be skipped in, and cannot be read over."""

    start = 0

    def skip(self, count):
        rest = Skipping(self)
        rest.start = count
        return rest

    def __iter__(self):
        return iter(self[self.start :])


class Words:
    """A tokenizer of words that are numbers."""

    eos_token_id = 2

    def __call__(self, texts, add_special_tokens=False):
        if isinstance(texts, str):
            return {"input_ids": [int(word) if word.isdigit() else 3 for word in texts.split()]}
        return {"input_ids": [self(text)["input_ids"] for text in texts]}


def _first(batch):
    return batch["input_ids"][:, 0].tolist()


def _steps(stream, dp=1, micro=2, accumulation=1, epoch=0, start=0, **options):
    """For each step, the rows that count, in the order of ranks; every rank makes the same calls."""
    options = {"shuffle": True, "seed": 3} | options
    loaders = [CollieDataLoader(stream, micro, accumulation, dp_rank=r, dp_size=dp, **options) for r in range(dp)]
    ranks = [list(loader.iterate(epoch, start)) for loader in loaders]
    assert {len(steps) for steps in ranks} == {len(loaders[0]) - start}
    assert all(len(step) == accumulation for steps in ranks for step in steps)
    return [
        [row for step in ranks_of_step for micro_batch in step for row in _first(micro_batch.batch)[: micro_batch.rows]]
        for ranks_of_step in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize(("dp", "micro", "accumulation"), [(2, 4, 1), (4, 1, 2), (1, 2, 4), (8, 1, 1)])
@pytest.mark.parametrize("rows", [64, 67, 3])
def test_a_step_sees_the_same_rows_in_every_layout(rows, dp, micro, accumulation):
    """In the same order, also in a last step that is not full, and each row of the epoch once."""
    stream = CollieStream(_rows(1000), rows=rows, shuffle_buffer=10)
    one = _steps(stream, micro=8, epoch=1)
    assert _steps(stream, dp, micro, accumulation, epoch=1) == one
    seen = list(itertools.chain(*one))
    assert sorted(seen) == list(range(rows)) and (rows == 3 or seen != sorted(seen))


def test_the_order_follows_from_seed_and_epoch_within_the_buffer():
    stream = CollieStream(_rows(200), rows=200, shuffle_buffer=20)

    def order(**options):
        return list(itertools.chain(*_steps(stream, **options)))

    first = order()
    assert order() == first != order(epoch=1) and order(seed=4) != first
    assert order(shuffle=False) == list(range(200))
    assert max(abs(place - row) for place, row in enumerate(first)) < 20
    loader = CollieDataLoader(stream, 2, shuffle=True, seed=3, dp_rank=1, dp_size=2)
    named = [loader.rows_at(0, step) for step in range(len(loader))]
    assert named == [[_first(m.batch) for m in step] for step in loader.iterate(0)]
    plain = CollieDataLoader(stream, 2, 2, shuffle=True, seed=3)
    assert [_first(batch) for batch in plain] == [first[4 * step : 4 * step + 4] for step in range(50)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_place_in_the_epoch_is_found_again(workers, tmp_path):
    """From every kind of source, with any number of workers: from step k on, what the whole epoch has from there."""
    datasets = pytest.importorskip("datasets")
    file, more = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text("\ufeff" + "".join(json.dumps(_row(n)) + "\n\n" for n in range(20)))
    more.write_text("\n".join(json.dumps(_row(n)) for n in range(20, 60)))
    table = datasets.Dataset.from_list([_row(n) for n in range(60)])
    sources = {
        "function": _rows(60),
        "files": [file, str(more)],
        "list": [_row(n) for n in range(60)],
        "skipping": Skipping(_row(n) for n in range(60)),
        "datasets": table.to_iterable_dataset(num_shards=3),  # a worker's own iterator would give it one shard
        "mix": {"a": _rows(5), "b": more},
    }
    for name, source in sources.items():
        stream = CollieStream(source, rows=53, shuffle_buffer=8)
        expected = _steps(stream, dp=2, epoch=2)
        rows = set(itertools.chain(*expected))
        assert len(rows) == 53 or name == "mix"
        assert max(rows) == 52 or name in ("datasets", "mix")  # of which one has its shards in another order by epoch
        loaders = [CollieDataLoader(stream, 2, shuffle=True, seed=3, num_workers=workers, dp_rank=1, dp_size=2)]
        again = [*_steps(stream, epoch=2, dp=2, start=5), *_steps(stream, dp=2, epoch=2, start=14)]
        assert again == expected[5:], name
        [mine] = [list(loader.iterate(2, 4)) for loader in loaders]
        whole = list(CollieDataLoader(stream, 2, shuffle=True, seed=3, dp_rank=1, dp_size=2).iterate(2))
        for ours, theirs in zip(mine, whole[4:], strict=True):
            assert [(m.rows, _first(m.batch)) for m in ours] == [(m.rows, _first(m.batch)) for m in theirs], name


def test_a_worker_makes_tokens_of_its_own_rows_alone(tmp_path):
    """And none of a row that a resumed training passes over."""

    class Noting:
        def encode(self, rows, indices):
            with (tmp_path / str(os.getpid())).open("a") as file:
                file.writelines(f"{index} " for index in indices)
            return CollieStream([], rows=1).encoder.encode(rows, indices)

    def made():
        return {path.name: list(map(int, path.read_text().split())) for path in tmp_path.iterdir()}

    stream = CollieStream(_rows(40), rows=40, encoder=Noting())
    loader = CollieDataLoader(stream, 2, num_workers=2, dp_rank=1, dp_size=2)
    list(loader.iterate(0, start_step=5))
    parts = made()
    assert str(os.getpid()) not in parts and len(parts) == 2
    assert sorted(itertools.chain(*parts.values())) == [row for row in range(20, 40) if row % 4 > 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_read_once_an_epoch(workers, tmp_path):
    """By every reader: what belongs to other ranks and workers is read over, and not begun anew for."""

    def make():
        with (tmp_path / "begun").open("a") as file:
            file.write(f"{os.getpid()} ")
        return map(_row, range(60))

    stream = CollieStream(make, rows=60, shuffle_buffer=8)
    loader = CollieDataLoader(stream, 2, 2, shuffle=True, dp_rank=1, dp_size=3, num_workers=workers)
    for epoch, start in ((0, 0), (1, 2)):
        (tmp_path / "begun").write_text("")
        list(loader.iterate(epoch, start))
        begun = (tmp_path / "begun").read_text().split()
        assert len(begun) == len(set(begun)) == max(1, workers)


def test_an_epoch_may_be_given_in_steps_and_be_told_to_the_source():
    def make(epoch):
        return (_row(100 * epoch + number) for number in itertools.count())

    loader = CollieDataLoader(CollieStream(make, steps_per_epoch=3), 2, 2, dp_rank=1, dp_size=2)
    assert (len(loader), loader.rows) == (3, 24)
    assert [_first(m.batch) for m in next(loader.iterate(2))] == [[204, 205], [206, 207]]


def test_a_mix_keeps_its_proportions_and_begins_a_source_again():
    stream = CollieStream(
        {"few": [_row(1), _row(2)], "many": _rows(1000)}, rows=300, weights={"few": 1, "many": 3}, shuffle_buffer=0
    )
    seen = list(itertools.chain(*_steps(stream)))
    few = [row for row in seen if row < 3]
    assert 50 < len(few) < 100
    assert [row for row in seen if row > 2] == list(range(3, 3 + 300 - len(few)))  # 0, 1, 2 are counted with the few
    with pytest.raises(DataError, match="source 'none' has no rows"):
        _steps(CollieStream({"none": list, "many": _rows(9)}, rows=9))


def test_texts_become_tokens_as_in_a_dataset_and_rows_are_looked_at():
    text = [{"input": "5 6", "output": "8 9"}, {"text": "10 11 12 13"}]
    stream = CollieStream(text, Words(), rows=2, max_length=4)
    assert list(stream) == [
        {"input_ids": [5, 6, 8, 9], "attention_mask": [1] * 4, "labels": [-100, -100, 8, 9]},
        {"input_ids": [10, 11, 12, 13], "attention_mask": [1] * 4, "labels": [10, 11, 12, 13]},
    ]
    stream.check()
    worker_s = DataLoader(stream, batch_size=None, num_workers=1)
    assert [row["input_ids"] for row in worker_s] == [row["input_ids"] for row in stream]
    with pytest.raises(DataError, match=r"row 1 is text .* there is no tokenizer"):
        CollieStream([_row(3), *text], rows=2).check()
    with pytest.raises(DataError, match="the stream has no rows"):
        CollieStream(list, rows=2).check()


BAD = {"input_ids": [5], "labels": [-100]}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_ends_or_is_left_out_equally_in_every_layout(workers, tmp_path, caplog):
    """Its step has a row less; a rank that has none repeats one, which does not count."""
    lines = [json.dumps(_row(number)) for number in range(16)]
    lines[3], lines[4], lines[5], lines[6] = (
        json.dumps(BAD),
        "{no json",
        '"a string"',
        json.dumps({"text": 3}),
    )
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    skipping = CollieStream(file, rows=16, on_bad_row="skip")
    skipping.check()
    options = {"shuffle": False, "num_workers": workers}
    expected = [[0, 1, 2], [7], [8, 9, 10, 11], [12, 13, 14, 15]]
    for dp, micro, accumulation in ((1, 4, 1), (2, 2, 1), (4, 1, 1), (1, 2, 2)):
        assert _steps(skipping, dp, micro, accumulation, **options) == expected
    loader = CollieDataLoader(skipping, 2, dp_rank=1, dp_size=2, num_workers=workers)
    caplog.clear()
    with caplog.at_level("WARNING"):
        list(loader.iterate(0))
    reasons = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert loader.refused == len(reasons) == 2  # of those that this rank has read
    assert "row 3 has no target token" in reasons[0] and "row 6" in reasons[1]
    for stream, sentence in (
        (CollieStream(file, rows=16), "row 3 has no target token"),
        (CollieStream([BAD] * 4 + [_row(4)], rows=5, on_bad_row="skip"), "none of the 4 rows of a step can be used"),
    ):
        with pytest.raises(DataError, match=sentence):
            _steps(stream, micro=4, shuffle=False)


def test_a_stream_that_ends_early_says_so():
    for buffer in (0, 8):
        stream = CollieStream(_rows(21), rows=30, shuffle_buffer=buffer)
        loader = CollieDataLoader(stream, 2, shuffle=True)
        with pytest.raises(
            DataError, match="ended after 21 rows of epoch 0, and an epoch has 30 rows here: give rows=21"
        ):
            list(loader.iterate(0))
        with pytest.raises(DataError, match="ended after"):  # where a resumed training would go on
            list(loader.iterate(0, start_step=13))


def test_what_tells_one_stream_from_another(tmp_path):
    """First rows, sizes of files, shares of a mix: a loader's order has them, and a checkpoint is compared with it."""
    file = tmp_path / "a.jsonl"
    lines = [json.dumps(_row(number)) for number in range(40)]

    def order(source, rows=30, **options):
        return CollieDataLoader(CollieStream(source, rows=rows, **options), 2, shuffle=True).order

    file.write_text("\n".join(lines))
    orders = [order(file), order(_rows(40)), order([_row(number + 1) for number in range(40)])]
    assert order(file) == orders[0] and order([_row(number) for number in range(40)]) == orders[1]
    file.write_text("\n".join(lines[:20] + lines[21:]))
    orders += [order(file), order(file, shuffle_buffer=7)]
    orders += [order({"a": file, "b": _rows(9)}, weights={"a": a, "b": 1}) for a in (1, 2)]
    assert len(set(orders)) == 7, orders


def test_reading_leaves_random_numbers_alone():
    state = torch.random.get_rng_state()
    _steps(CollieStream(_rows(20), rows=20))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "give rows=.*or steps_per_epoch="),
        ({"rows": 3, "steps_per_epoch": 3}, "not both"),
        ({"rows": 0}, "rows=0: give a whole number"),
        ({"rows": 3, "shuffle_buffer": -1}, "shuffle_buffer=-1"),
        ({"rows": 3, "on_bad_row": "drop"}, "on_bad_row='drop'"),
        ({"rows": 3, "tokenizer": Words(), "encoder": Words()}, "or leave out encoder"),
        ({"rows": 3, "max_length": 1}, "max_length=1 leaves no token"),
        ({"rows": 3, "weights": {"a": 1}}, "weights are for a dict"),
        ({"rows": 3, "source": iter([1])}, "a list_iterator can be read once.*function that makes a fresh one"),
        ({"rows": 3, "source": 5}, "a int is no stream"),
        ({"rows": 3, "source": "nowhere.jsonl"}, "nowhere.jsonl is not a file"),
        ({"rows": 3, "source": {"a": [], "b": []}, "weights": {"a": 1}}, "one weight for each"),
        ({"rows": 3, "source": {"a": []}, "weights": {"a": -1}}, r"weights\['a'\]=-1 is no share"),
    ],
)
def test_what_cannot_be_streamed(arguments, sentence):
    with pytest.raises((ConfigError, DataError), match=sentence):
        CollieStream(**{"source": _rows(3), **arguments})


def test_what_a_loader_cannot_do_with_a_stream():
    stream = CollieStream(_rows(3), rows=3)
    for options in ({"sampler": [0, 1, 2]}, {"group_by_length": True}):
        with pytest.raises(ConfigError, match="a stream is read as it comes"):
            CollieDataLoader(stream, 1, **options)
    with pytest.raises(DataError, match="a CollieStream, which has no length"):
        evaluation_batches(stream, 1, 0, 1, ColliePadder())
