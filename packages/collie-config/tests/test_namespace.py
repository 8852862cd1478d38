"""One name, collie, in several distributions."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import collie
from collie._namespace import LEAVES, NAMES, check_foreign
from collie.interfaces import ForeignPackageError, MissingExtraError

SOURCE = Path(collie._namespace.__file__).parents[1]
SHARED = ("collie", "collie.controller", "collie.utils")


def run(code: str, *roots: Path, options: Sequence[str] = ()) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter that sees this package's source root and `roots`, in that order, alone."""
    path = os.pathsep.join(str(root) for root in roots)
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path},
    )


def distribution(root: Path, leaf: str, text: str) -> Path:
    """Make the source root of another distribution that has one leaf."""
    folder = root.joinpath(*leaf.split("."))
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(text)
    return root


def test_the_three_shared_packages_hold_nothing_else():
    for package in SHARED:
        folder = SOURCE.parent.joinpath(*package.split("."))
        assert [path.name for path in folder.iterdir() if path.is_file()] == ["__init__.py"]


def test_each_leaf_here_is_typed_and_is_imports_alone():
    leaves = [leaf for leaf, owner in LEAVES.items() if owner == "collie-config"]
    for leaf in [*leaves, "collie._namespace"]:
        folder = SOURCE.parent.joinpath(*leaf.split("."))
        assert (folder / "py.typed").exists()
        for line in (folder / "__init__.py").read_text().splitlines():
            assert re.match(r'"""|from |__all__|    |\)|\]|$', line), line
    typed = {".".join(path.parent.relative_to(SOURCE.parent).parts) for path in SOURCE.rglob("py.typed")}
    assert typed == {*leaves, "collie._namespace"}


def test_flat_names_are_those_that_the_leaves_here_export():
    for package in SHARED:
        for name, leaf in NAMES[package].items():
            assert leaf.startswith(package + ".")
            if LEAVES[leaf] == "collie-config":
                assert name in importlib.import_module(leaf).__all__
                assert getattr(importlib.import_module(package), name) is getattr(sys.modules[leaf], name)


@pytest.mark.parametrize("order", [1, -1])
def test_leaves_of_other_distributions_are_found_in_both_orders(tmp_path, order):
    """Source roots that are apart, as in a checkout or with editable installs."""
    distribution(tmp_path / "train", "collie.controller.trainer", "class Trainer: pass")
    distribution(tmp_path / "models", "collie.utils.dist_utils", "env = 'the one'")
    roots = [SOURCE.parent, tmp_path / "train", tmp_path / "models"][::order]
    code = (
        "import collie; from collie import CollieConfig, Trainer, env; from collie.controller import Trainer as T\n"
        "from collie.utils import env as e, LossMonitor; import collie.controller.trainer as m\n"
        "assert Trainer is T is m.Trainer and env == e == 'the one' and collie.config.CollieConfig is CollieConfig\n"
        "print(CollieConfig().seed)"
    )
    done = run(code, *roots)
    assert done.stdout == "42\n", done.stderr


def test_nothing_is_imported_before_it_is_asked_for(tmp_path):
    distribution(tmp_path / "train", "collie.controller.trainer", "raise RuntimeError('too early')")
    code = (
        "import sys, collie, collie.controller, collie.utils; dir(collie); dir(collie.controller)\n"
        "print([name for name in sys.modules if name.startswith('collie.')])\n"
        "try: from collie import Trainer\n"
        "except RuntimeError as error: print(error)"
    )
    done = run(code, SOURCE.parent, tmp_path / "train")
    assert done.stdout.splitlines()[1] == "too early", done.stderr
    assert "collie.config" not in done.stdout and "collie.controller.trainer" not in done.stdout


@pytest.mark.parametrize(
    ("statement", "leaf", "owner"),
    [
        ("from collie import Trainer", "collie.controller.trainer", "collie-train"),
        ("from collie.controller import Evaluator", "collie.controller.evaluator", "collie-eval"),
        ("from collie.utils import env", "collie.utils.dist_utils", "collie-models"),
        ("import collie.controller.trainer", "collie.controller.trainer", "collie-train"),
        ("from collie.optim.lomo import Lomo", "collie.optim", "collie-train"),
        ("import collie; collie.tui", "collie.tui", "collie-tui"),
        ("from collie import metrics", "collie.metrics", "collie-eval"),
    ],
)
def test_a_missing_distribution_says_what_installs_it(statement, leaf, owner):
    code = (
        f"try:\n {statement}\nexcept ImportError as error: print(type(error).__name__, error.name, error)\n"
        "from collie import CollieConfig"
    )
    done = run(code, SOURCE.parent)
    assert done.stdout.strip() == f"MissingExtraError {leaf} {leaf} needs {owner}: pip install {owner}", done.stderr


def test_a_name_that_nobody_has():
    with pytest.raises(AttributeError, match="module 'collie' has no attribute 'Trianer'"):
        collie.Trianer  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Trianer'"):
        from collie import Trianer  # noqa: F401
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("collie.nothing")
    assert not isinstance(caught.value, MissingExtraError)


def test_a_star_takes_what_is_installed():
    code = "from collie import *\nprint(CollieConfig, LossMonitor); assert 'Trainer' not in globals()"
    done = run(code, SOURCE.parent)
    assert "CollieConfig" in done.stdout, done.stderr


def test_dir_lists_what_can_be_imported():
    import collie.controller
    import collie.utils

    assert {"CollieConfig", "Trainer", "env", "config", "optim", "utils", "__path__"} <= set(dir(collie))
    assert {"Trainer", "trainer", "evaluator"} <= set(dir(collie.controller))
    assert {"env", "monitor", "ColliePadder"} <= set(dir(collie.utils)) and "Trainer" not in dir(collie.utils)


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("collie-0.1.2.dist-info", "collie"),
        ("collie_lm-1.0.7.dist-info", "collie-lm"),
        ("collie_bench-0.4rc1.dist-info", "collie-bench"),
        ("Collie_Bench-0.4-py3.11.egg-info", "collie-bench"),
    ],
)
def test_another_package_of_this_name_is_named_at_the_first_import(tmp_path, entry, name):
    """With the command that removes it and puts our overwritten files back."""
    site = tmp_path / "site-packages"
    (site / entry).mkdir(parents=True)
    (site / "collie_config-0.1.0.dist-info").mkdir()
    (site / "collie_train-0.1.0.dist-info").mkdir()
    (site / "collie").symlink_to(SOURCE)
    done = run("import collie.config", site)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "collie.interfaces._errors.ForeignPackageError: "
        f"{name} installed another package called 'collie' over this one: "
        f"pip uninstall -y {name} && pip install --force-reinstall --no-deps collie-config collie-train"
    )


def test_other_distributions_are_no_strangers(tmp_path):
    for entry in ("collie_config-0.1.0.dist-info", "collie_lmx-1.dist-info", "colliery-1.dist-info", "collie_lm"):
        (tmp_path / entry).mkdir()
    check_foreign([str(tmp_path), str(tmp_path / "nowhere")])
    (tmp_path / "collie_lm-1.0.dist-info").mkdir()
    with pytest.raises(ForeignPackageError, match=r"^collie-lm installed"):
        check_foreign([str(tmp_path)])


def test_a_failed_import_looks_for_strangers_on_the_whole_path(tmp_path):
    (tmp_path / "collie_bench-1.0.dist-info").mkdir()
    done = run("import collie.optim", SOURCE.parent, tmp_path)
    assert "over this one: pip uninstall -y collie-bench" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("leaf", ["collie.config", "collie.events", "collie.interfaces", "collie.utils.monitor"])
@pytest.mark.parametrize("stranger", ["collie_lm-1.0.7.dist-info", None])
def test_an_overwritten_root_is_noticed(tmp_path, leaf, stranger):
    """Another project's collie/__init__.py stands where ours was: no line of ours runs before a leaf's."""
    site = tmp_path / "site-packages"
    shutil.copytree(SOURCE, site / "collie")
    (site / "collie_config-0.1.0.dist-info").mkdir()
    (site / "collie" / "__init__.py").write_text("__version__ = '1.0.7'\n")
    (site / "collie" / "utils" / "__init__.py").write_text("")
    command = "pip install --force-reinstall --no-deps collie-config"
    if stranger:
        (site / stranger).mkdir()
        command = f"pip uninstall -y collie-lm && {command}"
    done = run(f"import {leaf}", site)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "ForeignPackageError: " in last and last.endswith(command), done.stderr


def test_a_root_that_went_with_a_stranger_is_missed(tmp_path):
    """`pip uninstall` of another project takes the collie/__init__.py with it that it had overwritten."""
    site = tmp_path / "site-packages"
    shutil.copytree(SOURCE, site / "collie")
    (site / "collie" / "__init__.py").unlink()
    done = run("import collie.config", site, options=["-S"])  # an installed CoLLiE would be found in its place
    assert done.stderr.splitlines()[-1] == (
        "collie.interfaces._errors.ForeignPackageError: the file collie/__init__.py of CoLLiE is missing: "
        "pip install --force-reinstall --no-deps collie-config"
    )
