"""The README names every command, and what it prints can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import shell
from planted import planted_world

import circuits
import cli
from circuits.render import FORMATS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNNING = (ROOT / "docs/automata.md").read_text(encoding="utf-8")
COMMANDS = sorted(cli.cli.commands)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


LINES = [
    line.split(" && ")[-1].removeprefix(".venv/bin/")
    for block in blocks("sh") + blocks("sh", RUNNING)
    for line in block.splitlines()
    if "circuits" in line
]
PYTHON = blocks("python")


@pytest.mark.parametrize("line", LINES)
def test_every_line_parses(line: str) -> None:
    program, name, *words = shlex.split(line)
    assert program == "circuits"
    command = cli.cli.commands[name]
    context = command.make_context(name, words)
    assert context.command is command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_table_and_has_an_example(name: str) -> None:
    assert f"| `circuits {name}` |" in README
    text = cli.cli.commands[name].get_help(click.Context(cli.cli.commands[name], info_name=name))
    assert "Example:" in text
    assert f"circuits {name}" in text


def test_the_table_names_no_command_that_is_not_there() -> None:
    named = re.findall(r"^\| `circuits ([a-z-]+)` \|", README, flags=re.MULTILINE)
    assert sorted(named) == COMMANDS


def test_the_two_commands_stand_alone_and_first() -> None:
    first, second = blocks("sh")[:2]
    for block in (first, second):
        assert len(block.splitlines()) == 1
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert first.rstrip().endswith("&& .venv/bin/circuits demo")
    assert second.rstrip().endswith('&& .venv/bin/pytest -n auto -m "not long"')


def test_every_picture_and_file_named_is_there() -> None:
    files = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    files += re.findall(r"`((?:sae_core|circuits|docs)/[\w./-]+)`", README)
    assert files
    assert not [name for name in files if not (ROOT / name).exists()]


def test_the_formats_named_are_drawn() -> None:
    assert {"svg", "dot", "html", "png", "pdf"} <= set(FORMATS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a small run where the demo would have put its own."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "README.md").write_text(README, encoding="utf-8")
    run = folder / "circuits-demo" / "run"
    planted_world(run, n_tokens=40_000)
    assert shell.invoke("graph", run).exit_code == 0
    assert shell.invoke("automata", run).exit_code == 0
    return folder


@pytest.mark.parametrize("code", PYTHON, ids=["analysis", "open-door"])
def test_the_python_runs(code: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    exec(compile(code, "README.md", "exec"), {})


def test_the_python_of_running_an_automaton_runs_in_turn(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    code = blocks("python", RUNNING)
    assert len(code) == 7
    for block in code:
        exec(compile(block, "docs/automata.md", "exec"), names)
        printed = capsys.readouterr().out
        assert printed, block
        assert "Warning" not in printed


@pytest.mark.parametrize("line", [one for one in LINES if one.startswith("circuits trace")])
def test_the_traces_are_printed(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    run = circuits.open_run("circuits-demo/run")
    Path("page.html").write_bytes(run.document(0))  # planted features have no model to read more
    words = shlex.split(line.replace("NAME", run.automata[0].name))
    rows = shell.rows_of(shell.invoke(*words[1:], "--json"))
    assert {row["state"] for row in rows} > {None}


@pytest.mark.parametrize("line", [one for one in LINES if re.match(r"circuits (query|show)", one)])
def test_the_questions_are_answered(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    result = shell.invoke(*shlex.split(line)[1:])
    assert result.exit_code == 0, result.stderr
    assert result.stdout
