"""Training on a stream, and with rows grouped by length: the same losses in every layout, and exact resumes."""

import os
import re

import pytest
from resuming import Losses, adamw, assert_goes_on_bitwise, interrupted, train
from toy_training import rows

from collie.data import CollieStream
from collie.interfaces import CheckpointError, DataError
from collie.testing import run_ranks

STREAM = {"train_epochs": 2, "dropout": 0.2}


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Runs of these tests lie in their own folder."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)


def stream(**options):
    return CollieStream(rows, **{"rows": 10, "shuffle_buffer": 4} | options)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_and_rows_by_length_go_on_bitwise(tmp_path, workers):
    def run():
        config = STREAM | {"dataloader_num_workers": workers}
        return [
            interrupted(adamw, tmp_path / "stream", dataset=stream(), **config),
            interrupted(adamw, tmp_path / "lengths", group_by_length=True, micro=2, **config),
        ]

    for results in zip(*run_ranks(1, run), strict=True):
        assert_goes_on_bitwise(results)


LAYOUTS = {
    "zero1": {"stage": 1, "micro": 2, "dataloader_num_workers": 1},
    "zero3": {"stage": 3, "micro": 1, "accumulate": 2},
    "tp2": {"micro": 4, "tp_size": 2},
    "pp2": {"micro": 2, "accumulate": 2, "pp_size": 2},
}


def test_two_ranks_have_the_losses_of_one_process_also_after_a_resume(tmp_path):
    """Ten rows in steps of four, the last of them uneven; saved in one layout and resumed in another."""
    path = tmp_path / "c"

    def alone():
        return [
            train(adamw, Losses(), dataset=stream(), train_epochs=2)[0],
            train(adamw, Losses(), group_by_length=True, train_epochs=2)[0],
        ]

    def two():
        losses = {
            name: [
                train(adamw, Losses(3 if name == "zero1" else None, path), dataset=stream(), train_epochs=2, **layout)[
                    0
                ],
                train(adamw, Losses(), group_by_length=True, train_epochs=2, **layout)[0],
            ]
            for name, layout in LAYOUTS.items()
        }
        resumed = train(adamw, Losses(), resume=path, dataset=stream(), train_epochs=2, **LAYOUTS["tp2"])[0]
        return losses, resumed

    of_stream, by_length = run_ranks(1, alone)[0]
    assert len(of_stream) == len(by_length) == 6
    for losses, resumed in run_ranks(2, two):
        for name, (streamed, grouped) in losses.items():
            assert streamed == pytest.approx(of_stream, abs=1e-4), name
            assert grouped == pytest.approx(by_length, abs=1e-4), name
        assert resumed == pytest.approx({step: loss for step, loss in of_stream.items() if step > 3}, abs=1e-4)


def _fails(make, **config):
    """What each of two ranks raises, which both do within seconds."""
    errors = run_ranks(2, lambda: train(adamw, Losses(), dataset=make(), **config), timeout=30, return_exceptions=True)
    assert all(isinstance(error.exception, DataError) for error in errors), errors
    return [str(error.exception) for error in errors]


def _rank():
    return int(os.environ["RANK"])


def test_no_rank_waits_for_one_whose_rows_are_missing():
    """A stream that is shorter on one rank, or whose rows cannot be used there, ends both with a sentence."""

    def shorter():
        return (row for index, row in enumerate(rows() * 4) if index < 25 or _rank() == 0)

    def unusable():
        return (row if index < 25 or _rank() == 0 else {"text": "x"} for index, row in enumerate(rows() * 4))

    for source, reason in ((shorter, "ended after 25 rows of epoch 0"), (unusable, "there is no tokenizer")):
        first, second = _fails(lambda source=source: CollieStream(source, rows=40, shuffle_buffer=4), micro=2)
        assert "another rank could not read its rows of step" in first
        assert reason in second


def test_ranks_with_other_rows_are_told_before_the_first_step():
    """Another order, another number of rows, or nothing to read at all, on one rank."""
    for make, reason in (
        (lambda: stream(rows=10 + _rank()), "10 rows .* on rank 0, 11 rows"),
        (lambda: CollieStream(lambda: rows()[:: 1 - 2 * _rank()], rows=10), "first rows are .* on rank 0"),
        (lambda: rows()[_rank() :], "10 rows .* on rank 0, 9 rows"),
        (lambda: CollieStream(rows if _rank() == 0 else list, rows=10), "the stream has no rows"),
    ):
        for message in _fails(make):
            assert re.search(reason, message), message


def test_another_stream_or_order_is_no_place_to_go_on(tmp_path):
    path = tmp_path / "c"

    def run():
        train(adamw, Losses(0, path), dataset=stream())
        found = []
        for dataset, config in (
            (CollieStream(lambda: rows()[::-1], rows=10, shuffle_buffer=4), {}),
            (stream(shuffle_buffer=5), {}),
            (rows(), {}),
            (rows(), {"group_by_length": True}),
        ):
            with pytest.raises(CheckpointError, match="its rows would come in another order") as error:
                train(adamw, Losses(), resume=path, dataset=dataset, **config)
            found.append(str(error.value))
        return found

    [messages] = run_ranks(1, run)
    assert "a stream of rows whose first rows are" in messages[0] and "shuffled within 5 rows" in messages[1]
    assert "order='shuffled'" in messages[2] and "order='by length, 4 rows a step'" in messages[3]
