"""Faults R12 and C5: locale, time zone, clock, odd paths, no compiler, no cache: the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import shell
import tiny

import circuits

ODD = 'it\'s a "run"\nof grün \u4e2d [x] * ?.d'
FUTURE = 4_102_444_800  # the year 2100
CLOCK = """
import time
now = [4e9]
def jumps():
    now[0] -= 1e6  # a clock that is set back at every look
    return now[0]
time.time = jumps
"""
WORK = """
import sys
from pathlib import Path
import cli

def run(*words):
    try:
        cli.cli.main([str(word) for word in words], prog_name="circuits")
    except SystemExit as done:
        assert not done.code, (words, done.code)

parts, out = Path(sys.argv[1]), Path(sys.argv[2])
model = ["--model", parts / "model", "--sae", parts / "sae"]
for name in ("a", "b"):
    run("gather", parts / f"{name}.html", "-o", out / name, *model)
run("merge", out / "a", out / "b", "-o", out / "both")
run("graph", out / "both")
run("automata", out / "both")
run("page", out / "both", "-o", out / "page.html")
run("query", out / "both", "select * from edges", "--json")
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny.write_model(folder / "model")
    shell.write_sae(folder / "sae")
    for at, name in enumerate("ab"):
        shell.write_text(folder / f"{name}.html", 60, seed=1000 * at)
    return folder


@pytest.fixture(scope="module")
def usual(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], bytes]:
    """What the commands write and print where nothing is odd."""
    return worked(parts, tmp_path_factory.mktemp("usual"))


def worked(parts: Path, out: Path, code: str = "", **env: str) -> tuple[dict[str, str], bytes]:
    """Run the commands in a process of their own; give the files they write and what they print."""
    command = [sys.executable, "-c", code + WORK, str(parts), str(out)]
    changes = {"PYTHONHASHSEED": "1"} | env
    done = subprocess.run(
        command, env=shell.environment(**changes), capture_output=True, check=False, cwd=out
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"Error" not in done.stderr
    return shell.digests(out), done.stdout


@pytest.fixture(scope="module")
def turkish(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Turkish locale, made here; another one where that cannot be."""
    folder = tmp_path_factory.mktemp("locales")
    tool = shutil.which("localedef")
    if tool is not None:
        words = [tool, "-i", "tr_TR", "-f", "ISO-8859-9", str(folder / "tr_TR")]
        subprocess.run(words, check=False, capture_output=True)
    name = "tr_TR" if (folder / "tr_TR").is_dir() else "C.UTF-8"
    return {"LOCPATH": str(folder), "LC_ALL": name, "LANG": name}


def test_r12_a_plain_locale_another_time_zone_and_a_run_of_any_name_change_nothing(
    parts: Path, usual: tuple[dict[str, str], bytes], tmp_path: Path
) -> None:
    out = tmp_path / ODD
    out.mkdir()
    env = {"LC_ALL": "C", "LANG": "C", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "2"}
    assert worked(parts, out, **env) == usual


def test_r12_a_turkish_locale_a_jumping_clock_and_files_from_the_future_change_nothing(
    parts: Path, usual: tuple[dict[str, str], bytes], tmp_path: Path, turkish: dict[str, str]
) -> None:
    for at, path in enumerate(sorted(path for path in parts.rglob("*") if path.is_file())):
        os.utime(path, (FUTURE, FUTURE) if at % 2 else (0, 0))
    env = turkish | {"TZ": "America/St_Johns", "PYTHONHASHSEED": "3"}
    assert worked(parts, tmp_path, CLOCK, **env) == usual
    for path in tmp_path.rglob("*"):
        os.utime(path, (FUTURE, FUTURE))
    words = ["--model", parts / "model", "--sae", parts / "sae"]
    again = shell.invoke("gather", parts / "a.html", "-o", tmp_path / "a", *words)
    assert "complete" in again.stderr


def test_r12_a_text_may_be_called_anything_and_keeps_its_name(parts: Path, tmp_path: Path) -> None:
    text = tmp_path / ODD
    shutil.copy(parts / "a.html", text)
    words = ["--model", parts / "model", "--sae", parts / "sae"]
    for source, name in ((text, "odd"), (parts / "a.html", "plain")):
        assert shell.invoke("gather", source, "-o", tmp_path / name, *words).exit_code == 0
    odd, plain = (
        pl.read_parquet(tmp_path / name / "documents.parquet") for name in ("odd", "plain")
    )
    assert odd["source"].to_list() == [str(text)]
    assert odd.drop("source").equals(plain.drop("source"))
    for part in ("tokens", "statistics"):
        assert shell.digests(tmp_path / "odd" / part) == shell.digests(tmp_path / "plain" / part)
    assert circuits.open_run(tmp_path / "odd").document(0) == text.read_bytes()


@pytest.fixture
def sealed() -> Path:
    """A folder that is there and that nobody may write to, root neither."""
    folder = Path("/proc/self/net")
    if not folder.is_dir():
        pytest.skip("there is no folder here that nobody may write to")
    return folder


@pytest.mark.long  # all loops are compiled anew
def test_c5_without_a_place_for_compiled_loops_or_a_home_the_bytes_are_the_same(
    parts: Path, usual: tuple[dict[str, str], bytes], tmp_path: Path, sealed: Path
) -> None:
    env = {"NUMBA_CACHE_DIR": str(sealed), "HOME": str(sealed), "XDG_CACHE_HOME": str(sealed)}
    assert worked(parts, tmp_path, **env) == usual


def test_c5_without_compilation_the_bytes_are_the_same(
    parts: Path, usual: tuple[dict[str, str], bytes], tmp_path: Path
) -> None:
    assert worked(parts, tmp_path, NUMBA_DISABLE_JIT="1") == usual
