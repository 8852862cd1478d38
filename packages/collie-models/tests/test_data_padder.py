"""ColliePadder: lists of different lengths become tensors, and padding is neither attended to nor a target."""

import pickle

import numpy as np
import pytest
import torch

import collie.utils.padder
from collie.data import ColliePadder
from collie.interfaces import DataError

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8], "labels": [8]},
]


def _lists(batch):
    return {name: value.tolist() for name, value in batch.items()}


def test_pads_behind_the_rows():
    batch = ColliePadder()(ROWS)
    assert _lists(batch) == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "labels": [[-100, 6, 7], [8, -100, -100]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }
    assert all(value.dtype == torch.long for value in batch.values())


def test_pads_before_the_rows():
    batch = ColliePadder(padding_left=True)(ROWS)
    assert _lists(batch) == {
        "input_ids": [[5, 6, 7], [0, 0, 8]],
        "labels": [[-100, 6, 7], [-100, -100, 8]],
        "attention_mask": [[1, 1, 1], [0, 0, 1]],
    }


def test_values_given_override_the_defaults_one_by_one():
    batch = ColliePadder({"labels": -1, "input_ids": 9, "token_type_ids": 4})(
        [{**row, "token_type_ids": row["input_ids"]} for row in ROWS]
    )
    assert batch["labels"].tolist()[1] == [8, -1, -1]
    assert batch["input_ids"].tolist()[1] == [8, 9, 9]
    assert batch["token_type_ids"].tolist()[1] == [8, 4, 4]
    assert batch["attention_mask"].tolist()[1] == [1, 0, 0]
    assert ColliePadder()(ROWS)["labels"].tolist()[1] == [8, -100, -100]  # and the defaults are still themselves


def test_the_mask_of_a_row_is_kept_and_a_missing_one_added():
    rows = [{"input_ids": [5, 6, 0], "attention_mask": [True, True, False]}, {"input_ids": [8]}]
    batch = ColliePadder()(rows)
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]] and batch["attention_mask"].dtype == torch.long
    assert "labels" not in batch
    assert "attention_mask" not in rows[1]  # the caller's rows are left alone


def test_arrays_and_tensors():
    read_only = np.array([5, 6], dtype=np.int32)
    read_only.flags.writeable = False
    batch = ColliePadder()(
        [{"input_ids": read_only}, {"input_ids": torch.tensor([8], dtype=torch.int32)}, {"input_ids": (1, 2)}]
    )
    assert batch["input_ids"].tolist() == [[5, 6], [8, 0], [1, 2]] and batch["input_ids"].dtype == torch.long
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0], [1, 1]]


def test_numbers_floats_and_what_is_no_number():
    rows = [
        {
            "input_ids": [1],
            "id": 3,
            "score": 0.5,
            "weights": [0.5],
            "answer": "yes",
            "options": ["a", "b"],
            "none": None,
        },
        {
            "input_ids": [2],
            "id": np.int32(4),
            "score": 1,
            "weights": [],
            "answer": "no",
            "options": ["c"],
            "none": None,
        },
    ]
    batch = ColliePadder()(rows)
    assert batch["id"].tolist() == [3, 4] and batch["id"].dtype == torch.long
    assert batch["score"].tolist() == [0.5, 1.0] and batch["score"].dtype == torch.float32
    assert batch["weights"].tolist() == [[0.5], [0.0]] and batch["weights"].dtype == torch.float32
    assert (
        batch["answer"] == ["yes", "no"] and batch["options"] == [["a", "b"], ["c"]] and batch["none"] == [None, None]
    )


def test_further_dimensions_are_kept():
    rows = [{"input_ids": [1], "pixels": torch.ones(2, 3)}, {"input_ids": [1], "pixels": torch.ones(1, 3)}]
    pixels = ColliePadder(padding_left=True)(rows)["pixels"]
    assert pixels.shape == (2, 2, 3) and pixels[1].tolist() == [[0, 0, 0], [1, 1, 1]]
    with pytest.raises(DataError, match=r"pixels has the shapes \[\(2, 3\), \(1, 4\)\]"):
        ColliePadder()([rows[0], {"input_ids": [1], "pixels": torch.ones(1, 4)}])


def test_rows_without_tokens_and_rows_that_are_empty():
    assert ColliePadder()([{"value": [1, 2]}, {"value": [3]}])["value"].tolist() == [[1, 2], [3, 0]]
    batch = ColliePadder()([{"input_ids": []}, {"input_ids": []}])
    assert batch["input_ids"].shape == (2, 0) and batch["input_ids"].dtype == torch.long


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "no rows"),
        ([[1, 2]], "row 0 of the batch is a list"),
        ([ROWS[0], {"input_ids": [1]}], r"row 1 of the batch differs from row 0 in the fields \['labels'\]"),
        ([ROWS[0], {"input_ids": [1], "labels": [1, 2]}], "row 1 .* different lengths: .*'labels': 2"),
        ([{"input_ids": ["a"]}], "input_ids must be a flat list of numbers"),
        ([{"x": [1], "attention_mask": [1]}, {"x": [1]}], r"\['attention_mask'\]"),
    ],
)
def test_rows_that_do_not_fit(rows, sentence):
    with pytest.raises(DataError, match=sentence):
        ColliePadder()(rows)


def test_names_of_existing_scripts():
    assert collie.utils.padder.ColliePadder is ColliePadder
    padder = pickle.loads(pickle.dumps(ColliePadder({"labels": -1}, padding_left=True)))
    assert padder.padding_token_id == {"attention_mask": 0, "labels": -1} and padder.padding_left
    assert padder.collate_fn(ROWS)["labels"].tolist() == padder(ROWS)["labels"].tolist() == [[-100, 6, 7], [-1, -1, 8]]
