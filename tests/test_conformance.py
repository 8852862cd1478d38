"""The scripts beside a checkout: reference numbers, layouts that train alike, the tutorial's example."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SHARED = pathlib.Path(os.environ.get("COLLIE_SHARED", pathlib.Path(__file__).parent.parent.parent / "shared"))
SCRIPTS, GOLDENS = SHARED / "conformance", SHARED / "goldens"
LAYOUTS = ("dp2", "dp2-zero1", "dp2-zero2", "dp2-zero3", "accumulate", "tp2", "tp2-dp2-zero1", "tp2-dp2-zero3")
LAYOUTS += ("pp2", "pp2-dp2-zero1", "tp2-pp2")

pytestmark = [
    pytest.mark.skipif(not SCRIPTS.is_dir(), reason=f"no conformance scripts at {SCRIPTS}: set COLLIE_SHARED"),
    pytest.mark.timeout(900),
]


def run(*command):
    """Run a command to its end; its output, also where it failed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=850, check=False
    )
    return done.returncode, done.stdout, done.stderr[-4000:]


def test_parity_with_reference_numbers():
    """Logits, loss, gradients and greedy tokens are those of the reference implementations, to 1e-4."""
    cases = ("moss_moon", "codegen", "llama2", "llama3")
    code, out, errors = run(SCRIPTS / "parity.py", *(GOLDENS / case for case in cases))
    assert out.splitlines() == [f"{case}: equal" for case in cases], out + errors
    assert code == 0


@pytest.mark.parametrize("split", ["--tp", "--pp"])
def test_parity_of_two_ranks_of_one_model(split):
    """Logits and greedy tokens, also with an odd vocabulary, and with fused and grouped heads."""
    cases = ("moss_moon", "codegen", "llama2", "llama3")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    code, out, errors = run(*torchrun, SCRIPTS / "parity.py", split, "2", *(GOLDENS / case for case in cases))
    assert [line for line in out.splitlines() if ": " in line] == [f"{case}: equal" for case in cases], out + errors
    assert code == 0


@pytest.mark.parametrize("optimizer", ["sgd", "lomo"])
def test_layouts_train_the_same_model(optimizer):
    """Three steps in each layout end with the weights and losses of a single process."""
    only = [word for layout in LAYOUTS for word in ("--only", layout)]
    code, out, errors = run(SCRIPTS / "layouts.py", GOLDENS / "llama3", *only, "--optimizer", optimizer)
    assert code == 0, out + errors
    assert sorted(line.split(":")[0] for line in out.splitlines()) == sorted(LAYOUTS)


def test_the_tutorials_example(tiny_moss, tmp_path):
    """Two ranks overfit one sentence: perplexity under 1.1 after 100 steps."""
    out = tmp_path / "out.json"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    code, printed, errors = run(*torchrun, SCRIPTS / "seed_script.py", tiny_moss, out)
    assert code == 0, printed + errors
    result = json.loads(out.read_text())
    assert result["ppl"] < 1.1 and result["steps"] == 100
    decoded = [line for line in printed.splitlines() if line.startswith("decoded: ")]
    assert decoded == ["decoded: finetuning large language models."] * 8
