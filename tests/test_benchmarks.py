"""What the benchmarks compute from what they measured: a mistake there would be printed as a fact."""

import importlib
import json
import pathlib
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Import one of benchmarks/'s modules as its scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _event(category, name, start, length, thread=0):
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "tid": thread}


def _written(folder, events):
    path = folder / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def test_shares_of_a_step_are_those_of_its_own_kernels(benchmark, tmp_path):
    """100 µs: 40 of gemm, 20 of attention of which 10 run beside the gemm, 10 of a copy; so nothing ran for 40."""
    events = [
        _event("user_annotation", "ProfilerStep#1", 0, 100),
        _event("gpu_user_annotation", "ProfilerStep#1", 10, 70),  # the device's line has the step, too
        _event("kernel", "nvjet_tst_128x256_64x4_2x1_v_bz_TNN", 10, 40),
        _event("kernel", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop", 40, 20),
        _event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 70, 10),
        _event("kernel", "vectorized_elementwise_kernel", -20, 10),  # of the step before
        _event("cpu_op", "aten::mm", 0, 90),  # what started them is not counted
    ]
    found = benchmark("kernel_trace").summarise(_written(tmp_path, events))
    shares = {kind: share for kind, share in found["share"].items() if share}
    assert shares == pytest.approx({"gemm": 0.4, "attention": 0.2, "copy": 0.1, "idle": 0.4})
    assert found["step_ms"] == pytest.approx(0.1)
    assert [entry["kind"] for entry in found["top"]] == ["gemm", "attention", "copy"]


def test_an_operator_on_a_cpu_does_not_count_what_it_called(benchmark, tmp_path):
    events = [
        _event("user_annotation", "ProfilerStep#4", 0, 100),
        _event("cpu_op", "aten::linear", 0, 60),
        _event("cpu_op", "aten::mm", 10, 40),
        _event("cpu_op", "aten::add", 60, 30),
        _event("cpu_op", "aten::mul", 20, 10, thread=1),
    ]
    found = benchmark("kernel_trace").summarise(_written(tmp_path, events))
    spent = {entry["name"]: entry["ms"] * 1e3 for entry in found["top"]}
    assert spent == pytest.approx({"aten::mm": 40, "aten::add": 30, "aten::linear": 20, "aten::mul": 10})
    assert found["share"]["idle"] == pytest.approx(0.1)


def test_rows_of_text_are_full_and_lose_no_token_between(benchmark):
    def encode(texts):
        return [list(text.encode()) for text in texts]

    rows = benchmark("smollm2").blocks(["abc", "de", "f"], encode, 0, 4)
    assert rows == [[97, 98, 99, 0], [100, 101, 0, 102]]  # of the ninth token no row is made


def test_a_plot_marks_each_run_and_joins_neighbours_that_ended_well(benchmark):
    curves = {"LOMO": [(0.01, 5.0), (0.1, 4.0), (1.0, None)], "AdamW": [(1e-4, 4.5), (1e-3, 80.0)]}
    plot = benchmark("sweep_plot").svg(curves, 7.0, "a < b")
    coloured = plot.count('stroke-width="2"')
    assert plot.count("<circle") == 3 + len(curves)  # one more each in the key
    assert coloured == 1 + 2 * 2  # one pair of neighbours, and two crosses: diverged, and far above `before`
    assert "a &lt; b" in plot
