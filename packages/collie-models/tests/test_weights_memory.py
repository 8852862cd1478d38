"""Host memory while a model is loaded: what the rank keeps and one slice of a tensor, whatever the file's dtype is.

What counts is anonymous memory (RssAnon): see `PeakMemory`. The checkpoint itself is mapped.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and speaks to glibc")
MiB = 2**20
SLACK = 10 * MiB  # Python's own objects, and DeepSpeed's, for more layers than a small model has: less than any slice

CASES = [
    ("llama", "float32", 0, {}),
    ("llama", "bfloat16", 0, {}),
    ("moss", "bfloat16", 0, {}),  # rows in another order
    ("pickled", "bfloat16", 0, {}),
    ("llama", "bfloat16", 0, {"tp_size": 2}),  # columns of what is split by rows
    ("llama", "bfloat16", 0, {"pp_size": 2}),
    ("llama", "bfloat16", 3, {"dp_size": 2}),
    ("moss", "float32", 3, {"dp_size": 2}),
    ("moss", "float32", 3, {"tp_size": 2, "dp_size": 2}),
]


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """What `loading_memory.measure` returns, by case and rank."""
    root = tmp_path_factory.mktemp("memory")
    cases = root / "cases.json"
    cases.write_text(json.dumps(CASES))
    script = Path(__file__).with_name("loading_memory.py")
    run = subprocess.run([sys.executable, script, cases, root], capture_output=True, text=True, check=False)
    shutil.rmtree(root)  # more than a gigabyte, which pytest would keep for three runs
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{n}-{d}-{s}-{'-'.join(la)}" for n, d, s, la in CASES])
def test_the_peak_is_the_shard_and_one_slice(taken, case):
    for peak, shard, largest in taken[case]:
        assert shard > 90 * MiB and largest > SLACK
        assert 0.9 * shard < peak <= shard + largest + SLACK, (peak / MiB, shard / MiB, largest / MiB)
