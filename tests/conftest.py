"""What the tests across packages share: the built distributions, the tiny checkpoint, a bare interpreter."""

import os
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("config", "models", "train", "eval", "tui")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests tokenise is not kept in the user's own cache."""
    os.environ["COLLIE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def dist() -> pathlib.Path:
    """The folder with the five wheels and sdists that `nox -s wheels` built."""
    folder = pathlib.Path(os.environ.get("COLLIE_DIST", ROOT / "dist"))
    if len(list(folder.glob("collie_*.whl"))) != len(PACKAGES):
        pytest.skip(f"{folder} has no five wheels: run `nox -s wheels`, or set COLLIE_DIST")
    return folder


@pytest.fixture(scope="session")
def wheels(dist: pathlib.Path) -> dict[str, pathlib.Path]:
    """Package ("config", …) → its wheel."""
    return {package: next(dist.glob(f"collie_{package}-*.whl")) for package in PACKAGES}


@pytest.fixture(scope="session")
def unpacked(wheels: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Package → a folder that holds what its wheel holds, and nothing else."""
    folders = {}
    for package, wheel in wheels.items():
        folders[package] = tmp_path_factory.mktemp(package)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folders[package])
    return folders


@pytest.fixture(scope="session")
def bare_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """bare_python(code, *folders): run code with the standard library and these folders, without any site-packages."""

    def run(code: str, *folders: pathlib.Path) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": os.pathsep.join(map(str, folders)), "PATH": os.environ["PATH"]}
        command = [sys.executable, "-S", "-P", "-B", "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture(scope="session")
def tiny_moss(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The demo's tiny MOSS-moon checkpoint."""
    folder = tmp_path_factory.mktemp("tiny") / "moss"
    script = ROOT / "demo" / "tiny_moss.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture(autouse=True)
def runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty folder of runs, where whatever a test starts keeps its own."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("COLLIE_RUNS", str(folder))
    monkeypatch.delenv("COLLIE_RUN_DIR", raising=False)
    return folder
