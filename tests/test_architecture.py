"""The house holds: imports point down, packages are listed, and every room has a name."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("sae_core", "circuits", "figures", "cli")  # lowest first
MAX_LINES = 400
PACKAGES = ("sae_core", "circuits", "figures")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")) + [
    path for path in [ROOT / "cli.py"] if path.is_file()
]
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """List the modules that a file imports anywhere, in functions and for types too."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)} imports relatively"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def modules_of(package: str) -> list[str]:
    return [name_of(path) for path in FILES if name_of(path).split(".")[0] == package]


def loaded(code: str) -> set[str]:
    """Run code in a fresh Python; list which of the heavy packages it brought in."""
    heavy = "{'torch', 'numba', 'polars', 'transformers'}"
    check = f"{code}\nimport sys\nprint(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", check],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_no_file_imports_from_a_floor_above(path: Path) -> None:
    floor = FLOORS.index(name_of(path).split(".")[0])
    tops = {name.split(".")[0] for name in imported(path)}
    above = tops & set(FLOORS[floor + 1 :])
    assert not above, f"{shown(path)} imports {above}"


def test_circuits_never_brings_in_torch() -> None:
    modules = [name for name in modules_of("circuits") if not name.endswith("__main__")]
    assert len(modules) > 20
    assert "torch" not in loaded(f"import {', '.join(modules)}")


@pytest.mark.parametrize("path", [p for p in FILES if "circuits" in p.parts], ids=shown)
def test_no_file_of_circuits_names_torch_or_a_file_that_does(path: Path) -> None:
    with_torch = {
        name_of(file)
        for file in FILES
        if name_of(file).startswith("sae_core.")
        and any(name.split(".")[0] == "torch" for name in imported(file))
    }
    assert "sae_core.sae" in with_torch
    found = imported(path)
    assert not {name for name in found if name.split(".")[0] == "torch"}
    assert not found & with_torch


def test_the_roots_bring_in_neither_torch_nor_numba() -> None:
    assert loaded("import circuits, sae_core") == set()


def test_numba_lives_in_the_two_kernel_files_only() -> None:
    users = {
        shown(path)
        for path in FILES
        if any(name.split(".")[0] == "numba" for name in imported(path))
    }
    assert users <= {"sae_core/kernels.py", "circuits/kernels.py"}
    assert users


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_no_file_unpickles(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}


@pytest.mark.parametrize("package", ["circuits", "sae_core"])
def test_all_is_what_the_public_sees(package: str) -> None:
    module = import_module(package)
    public = {name for name in dir(module) if not name.startswith("_")} - {"DISTRIBUTION"}
    assert public == set(module.__all__)
    assert module.__all__ == sorted(module.__all__)
    assert set(module._HOMES) == set(module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize(
    "package",
    [
        "circuits",
        "sae_core",
    ],
)
def test_every_public_name_can_be_had(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        assert callable(getattr(module, name)), name


@pytest.mark.parametrize("package", ["circuits", "sae_core"])
def test_packages_say_that_they_are_ours_and_typed(package: str) -> None:
    assert import_module(package).DISTRIBUTION == "sae-automata"
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = ast.get_docstring(tree_of(path))
    assert text, f"{shown(path)} has no docstring"
    assert text.splitlines()[0].endswith((".", ":")), text.splitlines()[0]


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_no_module_is_longer_than_a_person_reads(path: Path) -> None:
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_LINES, f"{shown(path)} has {n_lines} lines"


def test_every_kernel_has_a_plain_twin_named() -> None:
    for file in ("sae_core/kernels.py", "circuits/kernels.py"):
        assert "tests/naive.py" in (ast.get_docstring(tree_of(ROOT / file)) or "")


def test_packages_listed_are_the_folders_that_are_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == there


def test_every_folder_with_modules_is_a_package() -> None:
    for path in FILES:
        if path.parent != ROOT:
            assert (path.parent / "__init__.py").is_file(), shown(path.parent)


@pytest.mark.parametrize("path", TEST_FILES, ids=shown)
def test_names_of_tests_are_sentences(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert node.name.count("_") >= 2, f"{shown(path)}: {node.name}"
