"""The row D5 through the commands: outputs that exist, that cannot be, that are full, that nobody reads."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import shell
from paired_run import file_of, found_in, write_paired


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_paired(tmp_path_factory.mktemp("paired") / "run")
    found_in(path)
    return path


def test_d5_of_several_pictures_none_is_written_where_one_may_not_be(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    name = file_of(run).stem
    kept = out / f"{name}.svg"
    kept.write_text("mine")
    words = ("render", run, "-o", out, "--format", "dot,html,svg")
    shell.refused(shell.invoke(*words), str(kept), "--force")
    assert [file.name for file in out.iterdir()] == [kept.name]
    assert kept.read_text() == "mine"
    kept.unlink()
    kept.mkdir()
    shell.refused(shell.invoke(*words, "--force"), str(kept), "is a folder")
    assert [file.name for file in out.iterdir()] == [kept.name]


def test_d5_a_folder_that_cannot_be_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", Path("/proc/none"), Path("/dev/null")):
        shell.refused(shell.invoke("render", run, "-o", target), str(target))


@pytest.mark.parametrize("words", [["page", "-o", "-"], ["query", "select * from nodes"]])
def test_d5_a_full_device_is_one_sentence(run: Path, words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        process = shell.start(words[0], run, *words[1:], stdout=full)
        _, stderr = process.communicate()
    assert process.returncode == 1
    (line,) = stderr.decode().splitlines()
    assert "No space left on device" in line
    assert "--traceback" not in line


@pytest.mark.parametrize("command", ["render", "trace", "show", "truth"])
def test_d5_a_pipe_that_nobody_reads_ends_quietly(run: Path, tmp_path: Path, command: str) -> None:
    name, text = file_of(run).stem, tmp_path / "text.txt"
    text.write_bytes(b"<a>= " * 2000)
    words: dict[str, list[object]] = {
        "render": [name, "-o", "-"],
        "trace": [name, text, "--by", "tokens", "--json"],
        "show": [name],
        "truth": ["--kind", "utf8"],
    }
    read, write = os.pipe()
    process = shell.start(command, run, *words[command], stdout=write)
    os.close(write)
    os.close(read)
    _, stderr = process.communicate()
    assert process.returncode == 0
    assert not re.search(b"Traceback|Error|Broken|Exception", stderr), stderr
