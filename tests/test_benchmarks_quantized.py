"""benchmarks/quantized.py at toy size on the CPU: what it would print of a GPU is what it says it is."""

import importlib
import pathlib
import sys

import pytest

from collie.testing import run_ranks

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
TOY = "--shape tiny --vocabulary 97 --seq 16 --batch 2 --steps 8 --lr 2e-2 --rank 4"


@pytest.fixture
def quantized(monkeypatch, tmp_path):
    for extra in ("peft", "bitsandbytes"):
        pytest.importorskip(extra)
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module("quantized")
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_quantized_weights_are_smaller_learn_as_well_and_their_adapter_fits_plain_ones(quantized):
    arguments = quantized.parse([*TOY.split(), "--kinds", "bf16,nf4"])
    # in a process of its own: a run, and the groups that DeepSpeed makes, are a process's for good
    [(plain, nf4)] = run_ranks(1, lambda: quantized.run(arguments))
    assert plain["learns"] and nf4["learns"] and nf4["loss"][1] == pytest.approx(plain["loss"][1], abs=0.5)
    assert nf4["weights_gib"] < 0.7 * plain["weights_gib"] and nf4["relative"] > 0
    assert 0 <= plain["merged"]["kl"] < nf4["merged"]["kl"] < 0.05


def test_what_cannot_be_measured_is_said(quantized, capsys):
    for given, words in (("--kinds fp4", "'fp4' is none of bf16, int8, nf4"), ("--steps 4", "at least 5")):
        with pytest.raises(SystemExit):
            quantized.parse(given.split())
        assert words in capsys.readouterr().err
