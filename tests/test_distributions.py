"""What is published: five wheels of one version that share no file, and their sdists."""

import ast
import pathlib
import re
import tarfile
import tomllib
import zipfile
from email.parser import Parser

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from collie._namespace import LEAVES

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("config", "models", "train", "eval", "tui")
MAY_IMPORT = {  # what design and metadata allow, besides a package itself
    "config": {"config"},
    "models": {"config", "models"},
    "train": {"config", "models", "train"},
    "eval": {"config", "models", "eval"},
    "tui": {"config", "tui"},
}
SHARED = ("collie", "collie/controller", "collie/utils")  # the packages that no single distribution owns


def files(wheel):
    """The files that a wheel's own RECORD lists, without those about the distribution."""
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        names = [line.split(",")[0] for line in archive.read(record).decode().splitlines()]
    return {name for name in names if ".dist-info/" not in name}


def metadata(wheel):
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def leaves(wheel):
    """Leaf → its folder in the wheel: the topmost packages below those that the distributions share."""
    found = {}
    for name in files(wheel):
        folder = pathlib.PurePosixPath(name).parent
        while str(folder.parent) not in SHARED and folder.parts:
            folder = folder.parent
        if str(folder) not in SHARED and folder.parts:
            found[".".join(folder.parts)] = str(folder)
    return found


def test_no_file_is_in_two_wheels(wheels):
    owners = {}
    for package, wheel in wheels.items():
        for name in files(wheel):
            assert owners.setdefault(name, package) == package, f"{name} is in {owners[name]} and in {package}"
    assert len(owners) > 100, "the wheels are nearly empty"


@pytest.mark.parametrize("package", PACKAGES)
def test_only_config_has_files_at_the_shared_levels(wheels, package):
    at_the_top = {name for name in files(wheels[package]) if str(pathlib.PurePosixPath(name).parent) in SHARED}
    assert at_the_top == ({f"{folder}/__init__.py" for folder in SHARED} if package == "config" else set())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_leaf_is_typed_and_in_the_table(wheels, package):
    """A leaf has py.typed, and the table that flat imports and their messages read knows whose it is."""
    known = {leaf for leaf, distribution in LEAVES.items() if distribution == f"collie-{package}"}
    private = {"collie._namespace"} if package == "config" else set()
    found = leaves(wheels[package])
    assert set(found) == known | private
    listed = files(wheels[package])
    assert {
        folder for leaf, folder in found.items() if leaf not in private and f"{folder}/py.typed" not in listed
    } == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_leaf_is_imports_and_all(wheels, package):
    """The __init__.py of a leaf has a docstring, imports and __all__, in which every name is one that it imports."""
    with zipfile.ZipFile(wheels[package]) as archive:
        for leaf, folder in leaves(wheels[package]).items():
            module = ast.parse(archive.read(f"{folder}/__init__.py"))
            imported, exported = set(), None
            for node in module.body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    imported |= {alias.asname or alias.name for alias in node.names}
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    assert node.targets[0].id == "__all__", f"{leaf} assigns {node.targets[0].id}"
                    exported = ast.literal_eval(node.value)
                else:
                    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                    assert text, f"{leaf}/__init__.py has code: {ast.unparse(node)[:60]}"
            assert exported, f"{leaf} has no __all__"
            assert set(exported) <= imported, f"{leaf}.__all__ has {set(exported) - imported}, which it does not import"


@pytest.mark.parametrize("package", PACKAGES)
def test_import_rules_name_every_leaf(wheels, package):
    """A new leaf must be given its place in the contracts that `nox -s lint` holds."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contracts = {contract["id"]: contract for contract in settings["contracts"]}
    owned = {leaf for leaf in leaves(wheels[package]) if leaf != "collie._namespace"}
    assert owned == set(contracts[package]["source_modules"])
    for other, allowed in MAY_IMPORT.items():
        forbidden = owned & set(contracts[other]["forbidden_modules"])
        assert forbidden == (set() if package in allowed else owned), f"the contract {other!r} is wrong on {package}"


def test_versions_are_in_lockstep_and_siblings_pinned(wheels):
    found = {package: metadata(wheel) for package, wheel in wheels.items()}
    versions = {about["Version"] for about in found.values()}
    assert len(versions) == 1, f"the five have the versions {versions}"
    version = Version(versions.pop())
    siblings = 0
    for package, about in found.items():
        for requirement in map(Requirement, about.get_all("Requires-Dist") or []):
            if requirement.name.startswith("collie-") and requirement.name != f"collie-{package}":
                siblings += 1
                assert str(requirement.specifier) == f"~={version.major}.{version.minor}.0", f"{package}: {requirement}"
                assert version in requirement.specifier
    assert siblings >= 5


@pytest.mark.parametrize("package", PACKAGES)
def test_requirements_admit_no_prerelease(wheels, package):
    """A plain install of ours never resolves a pre-release, and torch and transformers may move on.

    flash-attn-4, which only the extra `flash` asks for, has nothing but pre-releases: it is named by its version.
    """
    about = metadata(wheels[package])
    assert about["Requires-Python"] == ">=3.11" and about["License-Expression"] == "Apache-2.0"
    for requirement in map(Requirement, about.get_all("Requires-Dist") or []):
        named = requirement.name == "flash-attn-4" and 'extra == "flash"' in str(requirement.marker)
        assert named or not requirement.specifier.prereleases, str(requirement)
        assert requirement.specifier, f"{requirement} has no lower bound"
        wanted = {"torch": ["2.11.0", "2.13.0"], "transformers": ["5.0.0", "5.23.0"]}.get(requirement.name, [])
        assert all(requirement.specifier.contains(release) for release in wanted), str(requirement)


def test_the_dashboard_declares_no_torch(wheels):
    names = {Requirement(line).name for line in metadata(wheels["tui"]).get_all("Requires-Dist")}
    assert names == {"collie-config", "rich", "textual"}


@pytest.mark.parametrize("package", PACKAGES)
def test_sdist_has_source_tests_readme_and_licence(dist, wheels, package):
    with tarfile.open(next(dist.glob(f"collie_{package}-*.tar.gz"))) as archive:
        names = [member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()]
    tops = {name.split("/")[0] for name in names}
    assert {"src", "tests", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO"} <= tops
    assert tops <= {"src", "tests", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert {name.removeprefix("src/") for name in names if name.startswith("src/")} == files(wheels[package])
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$", name)]
