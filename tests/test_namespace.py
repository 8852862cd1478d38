"""One name, collie, out of five distributions: what can be imported, and what is said where it cannot."""

import importlib
import os
import shutil
import subprocess
import sys

import pytest

from collie._namespace import LEAVES, NAMES
from collie.testing import run_ranks

LIGHT = [leaf for leaf in LEAVES if LEAVES[leaf] in ("collie-config", "collie-tui")]


@pytest.mark.parametrize(("package", "name"), [(package, name) for package in NAMES for name in NAMES[package]])
def test_a_flat_name_is_what_its_leaf_has(package, name):
    home = importlib.import_module(NAMES[package][name])
    assert getattr(importlib.import_module(package), name) is getattr(home, name)
    assert name in home.__all__ and name in dir(importlib.import_module(package))


def test_the_tutorials_flat_imports():
    """The line of today's users: one import for configuration, training and the ranks' coordinates."""
    from collie import CollieConfig, Trainer, env
    from collie.config import CollieConfig as config_class
    from collie.controller.trainer import Trainer as trainer_class
    from collie.parallel import env as the_env

    assert (CollieConfig, Trainer, env) == (config_class, trainer_class, the_env)


def test_a_star_takes_every_name():
    """In an interpreter of its own: with all five installed nothing is left out, and nothing fails."""
    code = (
        "from collie import *; from collie._namespace import NAMES\n"
        "print([name for name in NAMES['collie'] if name not in globals()], len(NAMES['collie']) > 30)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout == "[] True\n", run.stderr


def test_an_unknown_name_is_refused():
    with pytest.raises(ImportError, match="Trainr"):
        exec("from collie import Trainr")


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_leaf_can_be_imported_first(leaf):
    """No leaf needs another one imported before it: a forked child forgets all of ours, but keeps torch."""

    def child():
        for name in [name for name in sys.modules if name == "collie" or name.startswith("collie.")]:
            del sys.modules[name]
        try:
            return len(importlib.import_module(leaf).__all__)
        except ImportError as error:
            return str(error)  # what is raised here is of a class that the parent does not know

    (exported,) = run_ranks(1, child, timeout=60)
    assert isinstance(exported, int) and exported > 0, exported


@pytest.mark.parametrize("leaf", ["collie", *LIGHT])
def test_light_leaves_load_no_torch(leaf):
    code = (
        f"import sys, {leaf}; print(*(name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("order", [1, -1])
def test_source_roots_in_any_order(unpacked, bare_python, order):
    """Five folders on the path, as an editable installation has them: each leaf is found, whichever comes first."""
    folders = list(unpacked.values())[::order]
    code = f"import importlib.util as u; print(*(u.find_spec(leaf).name for leaf in {list(LEAVES)}))"
    run = bare_python(code, *folders)
    assert (run.returncode, run.stdout.split(), run.stderr) == (0, list(LEAVES), "")


@pytest.mark.parametrize(
    ("statement", "command"),
    [
        ("from collie import Trainer", "pip install collie-train"),
        ("from collie import CollieModelForCausalLM", "pip install collie-models"),
        ("from collie.controller import EvaluatorForPerplexity", "pip install collie-eval"),
        ("import collie.controller.trainer", "pip install collie-train"),
        ("from collie.utils.dist_utils import env", "pip install collie-models"),
        ("import collie.adapters", "pip install collie-models"),
        ("from collie.utils.data_provider import BaseProvider", "pip install collie-eval"),
        ("import collie.tui", "pip install collie-tui"),
    ],
)
def test_a_missing_part_says_what_installs_it(unpacked, bare_python, statement, command):
    run = bare_python(statement, unpacked["config"])
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith(command), run.stderr


@pytest.mark.parametrize("leaf", ["collie.driver", "collie.log", "collie.controller.utils", "collie.utils.utils"])
def test_a_leaf_of_no_distribution_is_not_offered(unpacked, bare_python, leaf):
    """These names of earlier CoLLiE are not in this version: no installation would bring them."""
    run = bare_python(f"import {leaf}", unpacked["config"])
    assert run.stderr.splitlines()[-1] == f"ModuleNotFoundError: No module named '{leaf}'"


@pytest.mark.parametrize("overwrites", [False, True])
@pytest.mark.parametrize("foreign", ["collie", "collie-bench", "collie-lm"])
def test_a_foreign_collie_is_named(unpacked, bare_python, tmp_path, foreign, overwrites):
    """Another project's `collie` in the same site-packages: the first import of ours says how to remove it."""
    site = tmp_path / "site"
    shutil.copytree(unpacked["config"], site)
    about = site / f"{foreign.replace('-', '_')}-1.2.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {foreign}\nVersion: 1.2.3\n")
    if overwrites:
        (site / "collie" / "__init__.py").write_text("version = '1.2.3'\n")
    run = bare_python("import collie.config", site)
    assert run.returncode == 1
    assert f"pip uninstall -y {foreign}" in run.stderr, run.stderr


def test_the_command_names_a_foreign_collie(unpacked, tmp_path):
    """collie-tui says it too, and without a traceback's worth of puzzles: it ends with the sentence."""
    site = tmp_path / "site"
    for package in ("config", "tui"):
        shutil.copytree(unpacked[package], site, dirs_exist_ok=True)
    (site / "collie-1.2.3.dist-info").mkdir()
    environment = os.environ | {"PYTHONPATH": str(site)}
    code = "import sys; from collie.jobs.cli import main; sys.exit(main(['ls']))"
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode != 0
    assert "pip uninstall -y collie" in run.stderr.splitlines()[-1]
