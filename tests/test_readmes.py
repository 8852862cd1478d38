"""The code that the READMEs show runs as it stands, on the tiny checkpoint."""

import os
import pathlib
import re

import pytest

from collie.events import list_runs
from collie.testing import run_ranks

ROOT = pathlib.Path(__file__).parent.parent
READMES = ["README.md", *(f"packages/collie-{package}/README.md" for package in ("models", "train", "eval"))]
FOLDER = "path/of/a/checkpoint"


def blocks(readme):
    """The python blocks of a README."""
    return re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)


def execute(code, checkpoint, folder):
    """Run a block in `folder`, with the tiny checkpoint where it names one; what its variables were."""
    os.chdir(folder)
    names = {}
    exec(compile(code.replace(FOLDER, str(checkpoint)), "README", "exec"), names)
    return sorted(name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("readme", READMES)
def test_code_of_a_readme_runs(readme, tiny_moss, tmp_path):
    code = "\n".join(blocks(readme))
    assert FOLDER in code
    (names,) = run_ranks(1, execute, code, tiny_moss, tmp_path, timeout=120)
    assert "model" in names
    if "trainer" in names:
        assert (tmp_path / "trained" / "model.safetensors").is_file()


def test_code_that_reads_a_run(tiny_moss, tmp_path, runs):
    """collie-config's README: the configuration is written, then the newest run's events are read."""
    run_ranks(1, execute, blocks("packages/collie-train/README.md")[0], tiny_moss, tmp_path, timeout=120)
    assert len(list_runs(runs)) == 1
    (names,) = run_ranks(1, execute, "\n".join(blocks("packages/collie-config/README.md")), tiny_moss, tmp_path)
    assert "steps" in names and (tmp_path / "my-run").is_dir()


def test_both_languages_show_the_same_code():
    shared = [
        [line.split("#")[0] for line in "\n".join(blocks(name)).splitlines()]
        for name in ("README.md", "README.zh-CN.md")
    ]
    assert shared[0] == shared[1]
