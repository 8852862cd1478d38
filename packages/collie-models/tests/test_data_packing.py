"""Packing: rows go where best fit decreasing puts them, whole and once, and a batch says where each begins."""

import random
import time

import numpy as np
import pytest
import torch

from collie.data import CollieDataLoader, CollieDatasetForTraining, ColliePadder, PackedDataset, check_rows
from collie.data._best_fit import best_fit
from collie.interfaces import DataError


def row(length, start=0, **fields):
    ids = list(range(start + 3, start + 3 + length))
    return {"input_ids": ids, "attention_mask": [1] * length, "labels": ids, **fields}


ROWS = [row(length, 100 * number) for number, length in enumerate((4, 7, 2, 9, 3, 5, 10))]


def one_after_the_other(lengths, room):
    """Best fit decreasing as it is defined; returns the room that each pack has left."""
    left = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, free in enumerate(left) if free >= length]
        if not fitting:
            left.append(room)
            fitting = [len(left) - 1]
        left[min(fitting, key=left.__getitem__)] -= length
    return sorted(left)


@pytest.mark.parametrize("room", [2, 5, 16, 100])
def test_rows_go_where_the_definition_puts_them(room):
    draw = random.Random(room)
    for _ in range(50):
        lengths = np.array([draw.randint(1, room) for _ in range(draw.randint(1, 120))])
        rows, ends = best_fit(lengths, room)
        packs = np.split(rows, ends[:-1])
        assert sorted(rows.tolist()) == list(range(len(lengths)))
        assert sorted(room - lengths[pack].sum() for pack in packs) == one_after_the_other(lengths, room)
        assert all(pack.tolist() == sorted(pack) for pack in packs)
        assert [pack[0] for pack in packs] == sorted(pack[0] for pack in packs)


def test_a_million_rows_take_no_minute():
    """0.3 s where this was written; a walk over packs for each row would take hours."""
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1, 1_000_000).astype(int), 2, 4096)
    began = time.perf_counter()
    _, ends = best_fit(lengths, 4096)
    assert time.perf_counter() - began < 10
    assert lengths.sum() / (len(ends) * 4096) > 0.999


def test_a_pack_is_its_rows_with_positions_of_their_own_and_first_tokens_that_are_no_targets():
    packs = PackedDataset(ROWS, 10)
    together = {index: packs.rows_of(index) for index in range(len(packs))}
    assert together == {0: [0, 5], 1: [1, 4], 2: [2], 3: [3], 4: [6]}
    first = packs[0]
    assert first["input_ids"] == ROWS[0]["input_ids"] + ROWS[5]["input_ids"]
    assert first["attention_mask"] == [1] * 9
    assert first["position_ids"] == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert first["labels"] == [-100, *ROWS[0]["labels"][1:], -100, *ROWS[5]["labels"][1:]]
    assert first["row_lengths"] == [4, 5]
    check_rows(packs)


def test_the_report_says_how_full_packs_are_and_a_slice_is_a_dataset():
    packs = PackedDataset(ROWS, 10)
    assert packs.report.as_dict() == {
        "rows": 7, "tokens": 40, "packs": 5, "max_length": 10, "fill": 0.8, "longest": 10,
    }  # fmt: skip
    assert repr(packs) == "PackedDataset(7 rows in 5 packs of 10, 80.0% full)"
    part = packs[1:3]
    assert list(part) == [packs[1], packs[2]] and part.report.fill == 0.6 and part.report.tokens == 12
    assert packs[-1] == packs[4]
    assert packs.lengths.tolist() == [9, 10, 2, 9, 10] and part.lengths.tolist() == [10, 2]


def test_a_dataset_is_packed_without_being_read(monkeypatch):
    dataset = CollieDatasetForTraining(ROWS)
    expected = list(PackedDataset(ROWS, 12))
    with monkeypatch.context() as patch:
        patch.setattr(CollieDatasetForTraining, "__getitem__", lambda *which: pytest.fail("a row was read"))
        packs = dataset.packed(12)
    assert list(packs) == expected
    assert list(dataset[2:5].packed(12)) == list(PackedDataset(ROWS[2:5], 12))


def test_fields_of_each_token_follow_it_and_own_positions_are_kept():
    rows = [row(3, weight=[0.5, 1.0, 2.0], position_ids=[4, 5, 6]), row(2, weight=[3.0, 4.0], position_ids=[0, 9])]
    [pack] = PackedDataset(rows, 8)
    assert pack["weight"] == [0.5, 1.0, 2.0, 3.0, 4.0] and pack["position_ids"] == [4, 5, 6, 0, 9]


@pytest.mark.parametrize(
    ("rows", "max_length", "said"),
    [
        ([], 8, "the dataset has no rows"),
        ([row(3), row(9), row(9)], 8, r"row 1 has 9 tokens, more than a pack of 8: .*\(2 of 3 rows are such\)"),
        ([row(3), row(0)], 8, "row 1 has 0 tokens, none that could be packed"),
        ([row(3), {"text": "abc"}], 8, r"row 1 has the keys \['text'\] and no input_ids"),
        ([row(3)], 1, "max_length=1 leaves no token to predict"),
        (iter([row(3)]), 8, "is a list_iterator, which has no length or no access by index"),
    ],
    ids=["none", "long", "empty", "text", "short packs", "stream"],
)
def test_what_cannot_be_packed_is_refused_at_once(rows, max_length, said):
    with pytest.raises(DataError, match=said):
        PackedDataset(rows, max_length)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (row(3, name="b"), "row 1 has the field 'name' with no value a token"),
        (row(3, weight=[1.0] * 3), r"row 1 differs from row 0 of its pack in the fields \['weight'\]"),
        (row(3) | {"labels": [5, -100, -100]}, "row 1 has no target token"),
    ],
    ids=["name", "weight", "labels"],
)
def test_a_row_that_does_not_fit_its_pack_is_named(second, said):
    packs = PackedDataset([row(3), second], 8)
    with pytest.raises(DataError, match=said):
        packs[0]


@pytest.mark.parametrize(("left", "starts"), [(False, [0, 4, 9, 10, 17, 20]), (True, [0, 1, 5, 10, 17, 20])])
def test_a_batch_says_where_rows_begin_and_its_padding_is_a_row(left, starts):
    batch = ColliePadder(padding_left=left)(list(PackedDataset(ROWS, 10))[:2])
    assert next(iter(batch)) == "input_ids" and "row_lengths" not in batch
    assert batch["cu_seqlens"].dtype == torch.int32 and batch["cu_seqlens"].tolist() == starts
    assert batch["input_ids"].shape == batch["position_ids"].shape == (2, 10)
    padding = batch["attention_mask"] == 0
    assert padding.sum() == 1 and (batch["labels"][padding] == -100).all()


@pytest.mark.parametrize("lengths", [[4, 6], [9, 0], [[9]], "abc"], ids=str)
def test_lengths_that_are_not_those_of_the_pack_are_refused(lengths):
    pack = {**PackedDataset(ROWS, 10)[0], "row_lengths": lengths}
    with pytest.raises(DataError, match="row_lengths of row 0 of the batch is"):
        ColliePadder()([pack])


def test_packs_and_rows_are_not_one_batch():
    with pytest.raises(
        DataError, match=r"row 1 of the batch differs from row 0 in the fields \['position_ids', 'row_l"
    ):
        ColliePadder()([PackedDataset(ROWS, 10)[0], ROWS[3]])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_counts_packs(workers):
    """Each of two ranks reads its own; the last step's filler has no rows."""
    packs = PackedDataset(ROWS, 10)
    seen = []
    for rank in range(2):
        loader = CollieDataLoader(packs, 1, 2, dp_rank=rank, dp_size=2, num_workers=workers)
        assert len(loader) == 2
        for micro_batch in (one for step in loader.iterate(0) for one in step):
            assert micro_batch.batch["cu_seqlens"][-1] == micro_batch.batch["input_ids"].numel()
            seen += micro_batch.batch["input_ids"].tolist() * bool(micro_batch.rows)
    assert sorted(seen) == sorted(pack["input_ids"] for pack in packs)
