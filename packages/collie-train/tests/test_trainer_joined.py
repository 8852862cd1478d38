"""The batch that a train_fn gets on pipeline stages: the rows of a step's micro-batches, as they were."""

import pytest
import torch

from collie.controller.trainer._joined import joined
from collie.data import MicroBatch
from collie.interfaces import DataError


def micro(length, rows=2, **fields):
    """A micro-batch of [rows, length] tokens."""
    ids = torch.arange(rows * length).view(rows, length)
    return MicroBatch({"input_ids": ids, **fields}, rows)


def test_one_micro_batch_stays_as_it_is():
    """Whatever it holds; fillers repeat it, and are no others."""
    one = micro(
        4, teacher=torch.randn(2, 4, 11), wide=torch.ones(2, 20), scores=torch.ones(2, 3), alpha=torch.tensor(1.0)
    )
    assert joined([one]) is one
    assert joined([one, MicroBatch(one.batch, 0)]) is one


def test_rows_are_put_together_and_only_what_is_as_long_as_they_are_is_padded():
    """Along the second dimension, as the padder does it."""
    batches = [
        micro(
            length,
            rows,
            labels=torch.ones(rows, length, dtype=torch.long),
            teacher=torch.ones(rows, length, 5),
            scores=torch.full((rows, 4), length),  # as wide as the first batch is long
            wide=torch.ones(rows, 20),
            weight=torch.full((rows,), float(length)),
            name=[f"{length}.{row}" for row in range(rows)],
            alpha=torch.tensor(0.5),
            step=7,
            classes=torch.arange(9),
        )
        for length, rows in ((4, 2), (6, 3))
    ]
    made = joined(batches)
    batch = made.batch
    assert made.rows == 5
    assert batch["input_ids"].shape == (5, 6) and batch["input_ids"][1].tolist() == [4, 5, 6, 7, 0, 0]
    assert batch["labels"][0].tolist() == [1, 1, 1, 1, -100, -100]
    assert batch["teacher"].shape == (5, 6, 5) and batch["teacher"].sum((1, 2)).tolist() == [20, 20, 30, 30, 30]
    assert batch["scores"].tolist() == [[4] * 4] * 2 + [[6] * 4] * 3
    assert batch["wide"].shape == (5, 20)
    assert batch["weight"].tolist() == [4.0, 4.0, 6.0, 6.0, 6.0]
    assert batch["name"] == ["4.0", "4.1", "6.0", "6.1", "6.2"]
    assert batch["alpha"] == 0.5 and batch["step"] == 7 and batch["classes"].tolist() == list(range(9))


@pytest.mark.parametrize("shape", [(1,), (1, 2), (2, 2)], ids=str)
def test_positions_end_in_the_length(shape):
    """One row of them may stand for all, and ChatGLM's have two channels before it."""
    batches = [micro(n, position_ids=torch.arange(1, n + 1).expand(*shape, n)) for n in (4, 5)]
    positions = joined(batches).batch["position_ids"]
    assert positions.shape == (4, *shape[1:], 5)
    assert positions[0].flatten()[:5].tolist() == [1, 2, 3, 4, 0] and positions[3].flatten()[:5].tolist() == [
        1,
        2,
        3,
        4,
        5,
    ]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (torch.tensor(1.0), torch.tensor(2.0), r"x differs between a step's micro-batches \(it is \(\)\)"),
        (1, 2, r"x differs .*\(it is int\)"),
        (torch.ones(2, 3), torch.ones(2, 5), r"x has the shapes \(2, 3\), \(2, 5\) in a step"),
        (torch.ones(2, 4, 3), torch.ones(2, 6, 5), r"x has the shapes \(2, 4, 3\), \(2, 6, 5\) in a step"),
        (torch.arange(5), torch.arange(7), r"x differs .*\(5,\), \(7,\)"),
        (["a", "b"], torch.ones(2), "x differs .*list, "),
    ],
    ids=["0-d", "number", "other width", "other depth", "not of rows", "kinds"],
)
def test_what_cannot_be_joined_is_refused(first, second, said):
    """With the field's name, and what to do."""
    with pytest.raises(DataError, match=said + ".*set gradient_accumulation_steps to 1"):
        joined([micro(4, x=first), micro(6, x=second)])


def test_fields_of_some_micro_batches_alone_are_refused():
    """They would be missing from rows."""
    with pytest.raises(DataError, match="extra is in some of a step's micro-batches only"):
        joined([micro(4), micro(4, extra=torch.ones(2))])
