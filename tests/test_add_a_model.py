"""The guide to adding a model: it shows the example's files as they are, and the example does what it says."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "en" / "add-a-model.md"
EXAMPLE = ROOT / "examples" / "add_a_model"


@pytest.fixture
def site(tmp_path):
    """A folder with what an installer writes of the example: its metadata, its entry points, where its source is."""
    about = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        line
        for group, entries in about["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    ]
    folder = tmp_path / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {about['name']}\nVersion: {about['version']}\n")
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(site, *command):
    """Run Python where the example is installed."""
    path = [str(site), str(EXAMPLE / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_the_examples_own_tests_pass(site):
    """Against transformers: logits, loss, tokens, a trained and saved model, on one rank, two of tp, two of ZeRO-3."""
    done = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/add_a_model")
    assert done.returncode == 0 and re.search(r"^9 passed", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_its_family_is_found_without_an_import(site):
    code = (
        "import sys; from transformers import GPTNeoXConfig; from collie.models import find_family\n"
        "print('collie_gpt_neox' in sys.modules, find_family(GPTNeoXConfig()).__module__)"
    )
    done = run(site, "-c", code)
    assert done.stdout.split() == ["False", "collie_gpt_neox.model"], done.stderr


def test_the_guide_shows_the_examples_files():
    """Each block under a file's name is that file, or consecutive lines of it; no file of it is left out."""
    text = GUIDE.read_text(encoding="utf-8")
    shown = re.findall(r"^`([\w/.]+)`[^\n]*:\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(shown) == len(re.findall(r"^```(?:python|toml)$", text, re.MULTILINE))
    for name, block in shown:
        assert f"\n{block}" in "\n" + (EXAMPLE / name).read_text(encoding="utf-8"), f"{name} is not as the guide shows"
    files = {str(path.relative_to(EXAMPLE)) for path in EXAMPLE.rglob("*.*") if path.suffix in (".py", ".toml")}
    assert {name for name, _ in shown} == files
