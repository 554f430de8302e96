"""Faults at the command line: wrong words, closed pipes, hostile tokens, strangers in the house."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import shell
from planted import planted_world

import sae_core
from circuits.automaton import (
    EXIT,
    EdgeToken,
    Example,
    FeatureAutomaton,
    State,
    Transition,
)
from circuits.discover import write_automata
from sae_core import console

HOSTILE = ["\x1b[31mred", "\u202egnp.exe", "\u200bzero", "e\u0301", "\U0001f600", "\x07", "\x9b1m"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "run"
    planted_world(path, n_tokens=20_000)
    for command in ("graph", "automata"):
        assert shell.invoke(command, path).exit_code == 0
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tokens, document and automaton carry what a terminal must not get."""
    path = tmp_path_factory.mktemp("hostile") / "run"
    vocabulary = [text.encode() for text in HOSTILE] + [b"\xff\xe2\x80"]
    n, d = 4000, len(vocabulary)
    ids = np.arange(n) % d
    sae_core.write_run(
        path,
        documents=[f"page{HOSTILE[0]}{HOSTILE[1]}.txt"],
        tokens={"doc_id": np.zeros(n, int), "token_id": ids},
        indptr=np.arange(n + 1),
        features=ids,
        acts=np.ones(n),
        promotions=np.where(np.arange(n) < n - 1, 1.0, 0.0),
        vocabulary=vocabulary,
    )
    assert shell.invoke("graph", path).exit_code == 0
    raw = HOSTILE[0] + HOSTILE[1]
    states = (State(0, raw, (0, 1), (Example((raw, "b"), (1.0, 0.0), 0),)),)
    steps = (
        Transition(0, 0, 0.5, (EdgeToken(0, raw, 1.0),), raw, 5),
        Transition(0, EXIT, 0.5, (), "", 5),
    )
    found = FeatureAutomaton("bad", f"title {raw}", "loop", {"retention": 0.5}, states, steps)
    write_automata(path, [found])
    return path


def raw_controls(text: str) -> set[str]:
    """Find the characters that a terminal would obey instead of showing."""
    unseen = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    return {char for char in text if unicodedata.category(char) in unseen} - {"\n"}


# The rows of C, command line


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["gathr", "x"], "did you mean gather?"),
        (["automaton", "x"], "did you mean automata"),
        (["zzzzzz"], "circuits -h"),
        (["gather", "x", "--held-uot", "0.1"], "--held-out"),
        (["query", "run", "--succesors", "1"], "--successors"),
    ],
)
def test_c1_a_misspelt_word_gets_a_suggestion(words: list[str], hint: str) -> None:
    result = shell.invoke(*words)
    assert result.exit_code == 2
    assert hint in result.stderr
    assert result.stdout == ""


def test_c1_a_value_out_of_range_is_wrong_usage(tmp_path: Path) -> None:
    for option in (["--held-out", "1"], ["--held-out", "x"], ["--max-tokens", "0"]):
        result = shell.invoke("gather", "x", "-o", tmp_path / "run", *option)
        assert result.exit_code == 2, option
        assert option[0] in result.stderr


def test_c2_json_is_one_document_whatever_is_said(world: Path) -> None:
    for words in (
        ["automata", world],
        ["query", world, "select * from edges", "--limit", 1],
        ["truth", world, "--kind", "utf8"],
        ["show", world, "0"],
        ["verify", world],
    ):
        result = shell.invoke(*words, "--json")
        assert isinstance(json.loads(result.stdout), list), words
    assert (
        shell.invoke("query", world, "select * from edges where 1 = 2", "--json").stdout == "[]\n"
    )


@pytest.mark.parametrize(
    "env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"COLUMNS": "20"}, {"TERM": ""}]
)
def test_c3_no_bars_and_no_colours_anywhere(world: Path, env: dict[str, str]) -> None:
    done = shell.run("automata", world, env=env)
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"\r" not in done.stdout + done.stderr
    assert shell.run("gather", "-h", env=env).returncode == 0


def test_c3_a_terminal_that_cannot_encode_gets_escapes(world: Path) -> None:
    done = shell.run(
        "query", world, "select '\u4e2d' as a from edges", env={"PYTHONIOENCODING": "latin-1"}
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u4e2d" in done.stdout


@pytest.mark.parametrize("name", ["circuits", "sae_core"])
def test_c4_a_stranger_of_our_name_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("DISTRIBUTION = 'electronics'\n")
    shutil.copy(shell.ROOT / "cli.py", tmp_path / "cli.py")
    code = "import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "-h"],
        cwd=tmp_path,
        env=shell.environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stderr.decode()
    assert said.startswith("Error: ")
    assert len(said.splitlines()) == 1
    assert str(tmp_path / name) in said
    assert "environment of its own" in said


@pytest.mark.parametrize(
    "env", [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CACHE_DIR": "/proc/none"}, {"HOME": "/proc/none"}]
)
def test_c5_works_without_a_compiler_cache_or_a_home(world: Path, env: dict[str, str]) -> None:
    done = shell.run("truth", world, "--kind", "utf8", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_c8_an_unforeseen_error_is_one_sentence_with_a_hint(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(world, run)
    features = pl.read_parquet(run / "features.parquet")
    features.drop("feature_idx").write_parquet(run / "features.parquet")
    result = shell.invoke("show", run, "1")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "circuits --traceback" in result.stderr
    assert "Traceback" in shell.invoke("--traceback", "show", run, "1").stderr


def test_c8_random_arguments_never_give_a_bare_traceback(world: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [
        "graph", "query", "show", "verify", "render", "page", "truth", "merge", "-o", "--json",
        "--limit", "-1", "0", "1:2", "nan", "", "--", "-", "\udce9", "--motif", "loop",
        str(world), str(tmp_path / "out"), str(tmp_path), "select 1", "--token", "--path", "9" * 40,
    ]  # fmt: skip
    for _ in range(400):
        args = [words[at] for at in rng.integers(len(words), size=rng.integers(1, 6))]
        result = shell.invoke(*args, stdin=b"")
        assert result.exit_code in (0, 1, 2), args
        assert isinstance(result.exception, SystemExit | None), args
        assert "Traceback" not in result.stderr, args
        assert "--traceback" not in result.stderr, (args, result.stderr)


# The rows of T9, hostile tokens


def test_t9_no_raw_control_code_reaches_the_terminal(hostile: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes("".join(HOSTILE).encode())
    for words in (
        ["show", hostile, "0"],
        ["show", hostile, "0:1"],
        ["show", hostile, "bad"],
        ["query", hostile, "select * from edge_tokens"],
        ["query", hostile, "select * from nodes"],
        ["query", hostile, "select * from automata"],
        ["query", hostile, f"select {HOSTILE[0]}"],
        ["query", hostile, "--token", HOSTILE[0]],
        ["render", hostile, HOSTILE[1], "-o", tmp_path],
        ["trace", hostile, "bad", text, "--by", "tokens"],
        ["gather", tmp_path / HOSTILE[0], "-o", tmp_path / "no"],
        [HOSTILE[0]],
        ["gather", f"--{HOSTILE[0]}"],
    ):
        for more in ([], ["--json"]):
            result = shell.invoke(*words, *more)
            assert not raw_controls(result.stdout), words
            assert not raw_controls(result.stderr), words


def test_t9_escaped_tokens_are_shown_and_can_be_asked_for(hostile: Path) -> None:
    result = shell.invoke("query", hostile, "--token", "\\u{202e}gnp.exe", "--json")
    rows = json.loads(result.stdout)
    assert rows
    assert {row["token_str"] for row in rows} == {"\\u{202e}gnp.exe"}


# The rows of G, graph and automata


@pytest.mark.parametrize("what", ["-1", "100000", "1:100000", "-3:2", "one", "1.5", "1:2:3"])
def test_g4_an_unknown_feature_is_wrong_usage_with_the_range(world: Path, what: str) -> None:
    result = shell.invoke("show", world, what)
    assert result.exit_code == 2
    assert "features are 0.." in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "question",
    [["--successors", "-1"], ["--predecessors", "100000"], ["--path", "0", "100000"]],
)
def test_g4_the_same_in_queries(world: Path, question: list[str]) -> None:
    result = shell.invoke("query", world, *question)
    assert result.exit_code == 2
    assert "features are 0.." in result.stderr


def test_g4_a_feature_that_is_no_number_is_wrong_usage(world: Path) -> None:
    assert shell.invoke("query", world, "--successors", "one").exit_code == 2


def test_g1_a_run_without_edges_has_a_valid_empty_answer(tmp_path: Path) -> None:
    run, n = tmp_path / "run", 40
    sae_core.write_run(
        run,
        documents=["a"],
        tokens={"doc_id": np.zeros(n, int), "token_id": np.arange(n) % 4},
        indptr=np.arange(n + 1),
        features=np.zeros(n, int),
        acts=np.ones(n),
        promotions=np.zeros(n),
        vocabulary=[b"a", b"b", b"c", b"d"],
        d_sae=1,
    )
    result = shell.invoke("graph", run)
    assert result.exit_code == 0
    assert "0 edges" in result.stderr
    result = shell.invoke("automata", run, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert "No automaton was found" in result.stderr
    assert shell.invoke("render", run, "-o", tmp_path / "pictures").exit_code == 0
    assert shell.invoke("page", run, "-o", tmp_path / "page.html").exit_code == 0
    assert shell.invoke("query", run, "select * from edges").exit_code == 0


# The rows of D, outputs


def test_d3_without_dot_the_embedded_layout_takes_over_and_says_so(
    world: Path, tmp_path: Path
) -> None:
    automata = json.loads(shell.invoke("automata", world, "--json").stdout)
    name = automata[0]["name"]
    (tmp_path / "bin").mkdir()
    done = shell.run(
        "render",
        world,
        name,
        "-o",
        tmp_path,
        "--engine",
        "dot",
        env={"PATH": str(tmp_path / "bin")},
    )
    assert done.returncode == 0, done.stderr
    assert b"the embedded layout was used" in done.stderr
    assert (tmp_path / f"{name}.svg").is_file()


def test_d3_a_dot_that_crashes_is_survived(world: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "dot"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho garbage >&2\nexit 3\n")
    broken.chmod(0o755)
    path = f"{broken.parent}:/usr/bin:/bin"
    done = shell.run("render", world, "-o", tmp_path / "svg", "--engine", "dot", env={"PATH": path})
    assert done.returncode == 0, done.stderr
    assert b"garbage" in done.stderr
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "vl_convert.py").write_text("raise ImportError")
    env = {"PATH": path, "PYTHONPATH": str(tmp_path / "without")}
    asked = shell.run("render", world, "-o", tmp_path / "png", "--format", "png", env=env)
    assert asked.returncode == 1
    assert b"pip install 'sae-automata[pictures]'" in asked.stderr
    assert b"garbage" in asked.stderr


def test_d5_an_output_that_cannot_be_is_one_sentence(world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path, tmp_path / "file" / "page.html", Path("/proc/none/page.html")):
        result = shell.invoke("page", world, "-o", target)
        assert result.exit_code == 1, target
        (line,) = result.stderr.splitlines()
        assert str(target) in line


@pytest.mark.parametrize(
    "words",
    [
        ["-h"],
        ["query", "RUN", "select * from edges", "--limit", "9999"],
        ["page", "RUN", "-o", "-"],
    ],
)
def test_d5_a_closed_pipe_ends_quietly(world: Path, words: list[str]) -> None:
    read, write = os.pipe()
    process = shell.start(*[str(world) if word == "RUN" else word for word in words], stdout=write)
    os.close(write)
    os.close(read)
    _, stderr = process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in stderr
    assert b"Error" not in stderr
    assert b"Broken" not in stderr


def test_every_code_a_signal_gives_is_known() -> None:
    assert sorted(console.STOP_CODES.values()) == [130, 143]
