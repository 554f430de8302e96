"""Each command does its work, says so where it should, and prints what scripts rely on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import click
import pytest
import shell
from drawn import large
from planted import planted_world

import cli
from circuits.discover import write_automata

if TYPE_CHECKING:
    from pathlib import Path


COMMANDS = sorted(cli.cli.commands)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made elsewhere, with its graph and automata."""
    path = tmp_path_factory.mktemp("planted") / "run"
    planted_world(path, n_tokens=40_000)
    assert shell.invoke("graph", path).exit_code == 0
    assert shell.invoke("automata", path).exit_code == 0
    return path


# Every command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_and_has_an_example(name: str) -> None:
    result = shell.invoke(name, "-h")
    assert result.exit_code == 0
    assert "Example:\n" in result.stdout
    assert f"circuits {name}" in result.stdout.split("Example:")[1]
    options = [p for p in cli.cli.commands[name].params if isinstance(p, click.Option)]
    assert all(option.help for option in options)


def test_the_program_itself_has_help_version_and_an_example() -> None:
    assert "Example:\n    circuits demo" in shell.invoke("--help").stdout
    assert shell.invoke("--version").stdout.startswith("circuits, version ")


def test_help_brings_in_no_heavy_package() -> None:
    code = (
        "import sys, cli\n"
        "try: cli.cli(['gather', '-h'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'polars', 'numba', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=shell.environment(), capture_output=True, check=True
    )
    assert done.stdout.decode().splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["demo", "gather", "merge", "render", "page"])
def test_output_is_called_the_same_everywhere(name: str) -> None:
    (output,) = (p for p in cli.cli.commands[name].params if p.name == "output")
    assert output.opts == ["-o", "--output"]


@pytest.mark.parametrize("words", [["gather", "x"], ["merge", "x", "y"], ["page", "x"]])
def test_a_missing_output_is_wrong_usage(words: list[str]) -> None:
    result = shell.invoke(*words)
    assert result.exit_code == 2
    assert "--output" in result.stderr


# Runs made elsewhere, without a model


def test_graph_says_what_it_wrote_and_what_to_do_next(world: Path) -> None:
    result = shell.invoke("graph", world)
    assert result.stdout == ""
    assert "edges" in result.stderr
    assert f"circuits automata {world}" in result.stderr


def test_automata_are_listed_best_first(world: Path) -> None:
    rows = shell.rows_of(shell.invoke("automata", world, "--json"))
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert {"name", "title", "kind", "rank", "n_states", "retention"} <= set(rows[0])
    assert {row["kind"] for row in rows} <= {"loop", "pair", "system", "chain"}
    table = shell.invoke("automata", world).stdout.splitlines()
    assert table[0].split()[:3] == ["rank", "name", "kind"]
    assert len(table) == len(rows) + 1


def test_render_writes_pictures_that_parse(world: Path, tmp_path: Path) -> None:
    result = shell.invoke("render", world, "-o", tmp_path, "--format", "svg,dot,html")
    assert result.exit_code == 0, result.stderr
    names = [row["name"] for row in shell.rows_of(shell.invoke("automata", world, "--json"))]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{ending}" for name in names for ending in ("svg", "dot", "html")
    )
    for path in tmp_path.glob("*.svg"):
        assert ET.parse(path).getroot().tag.endswith("svg")


def test_render_of_one_name_can_be_zoomed_and_printed(world: Path) -> None:
    rows = shell.rows_of(shell.invoke("automata", world, "--json"))
    largest = max(rows, key=lambda row: int(str(row["n_states"])))
    words = ["render", world, largest["name"], "-o", "-", "--format", "dot"]
    full, small = shell.invoke(*words), shell.invoke(*words, "--states", 2)
    assert full.stdout.count(" [label=<") == largest["n_states"]
    assert small.stdout.count(" [label=<") == 2


def test_many_states_are_drawn_as_eight_unless_more_are_asked_for(
    world: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(world, tmp_path / "run")
    write_automata(run, [large(23, 400)])
    words = ["render", run, "-o", "-", "--format"]
    assert "8 of 23 states, the most alike merged" in shell.invoke(*words, "svg").stdout
    assert shell.invoke(*words, "dot").stdout.count(" [label=<") == 8
    assert shell.invoke(*words, "dot", "--states", 23).stdout.count(" [label=<") == 23
    for n_states, said in (
        ((), "8 of 23"),
        (("--states", 20), "20 of 23"),
        (("--states", 30), "23"),
    ):
        text = shell.invoke("page", run, "-o", "-", *n_states).stdout
        assert f"system · {said} states" in text


def test_render_names_the_automata_there_are(world: Path, tmp_path: Path) -> None:
    result = shell.invoke("render", world, "nope", "-o", tmp_path)
    assert result.exit_code == 1
    assert "has no automaton 'nope'; it has " in result.stderr


def test_an_unknown_format_is_wrong_usage(world: Path, tmp_path: Path) -> None:
    result = shell.invoke("render", world, "-o", tmp_path, "--format", "gif")
    assert result.exit_code == 2
    assert "svg, html, dot, png, pdf" in result.stderr


def test_page_is_one_html_file(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    assert shell.invoke("page", world, "-o", out).exit_code == 0
    parser = HTMLParser()
    parser.feed(out.read_text())
    assert shell.invoke("page", world, "-o", "-").stdout == out.read_text()


@pytest.mark.parametrize(
    ("question", "column"),
    [
        (["select source, target from edges limit 3"], "source"),
        (["--token", "pair0a"], "token_str"),
        (["--motif", "loop"], "features"),
        (["--motif", "pair"], "features"),
    ],
)
def test_query_answers(world: Path, question: list[str], column: str) -> None:
    rows = shell.rows_of(shell.invoke("query", world, *question, "--json"))
    assert all(column in row for row in rows)


def test_query_walks_the_graph(world: Path) -> None:
    best = shell.rows_of(
        shell.invoke("query", world, "select source, target from edges", "--json")
    )[0]
    source, target = best["source"], best["target"]
    after = shell.rows_of(shell.invoke("query", world, "--successors", source, "--json"))
    before = shell.rows_of(shell.invoke("query", world, "--predecessors", target, "--json"))
    paths = shell.rows_of(shell.invoke("query", world, "--path", source, target, "--json"))
    assert target in [row["target"] for row in after]
    assert source in [row["source"] for row in before]
    assert paths[0] == {"length": 1, "path": [source, target]}


def test_query_takes_one_question(world: Path) -> None:
    for question in ([], ["--successors", "1", "--motif", "loop"]):
        result = shell.invoke("query", world, *question)
        assert result.exit_code == 2
        assert "expected one" in result.stderr


def test_query_is_bounded_and_says_so(world: Path) -> None:
    result = shell.invoke("query", world, "select * from nodes", "--limit", 2)
    assert len(result.stdout.splitlines()) == 3
    assert "--limit gives more" in result.stderr


def test_show_describes_a_feature_with_examples(world: Path) -> None:
    (card,) = shell.rows_of(shell.invoke("show", world, "3", "--json"))
    assert {"density", "promoted_tokens", "suppressed_tokens", "successors"} <= set(card)
    values = [one["act"] for one in card["examples"]]  # type: ignore[attr-defined]
    assert values
    assert max(values) == pytest.approx(card["max_act"])
    text = shell.invoke("show", world, "3").stdout
    assert text.startswith("feature 3: ")
    assert "[[" in text


def test_show_describes_an_edge_by_the_text_where_it_ran(world: Path) -> None:
    best = shell.rows_of(
        shell.invoke("query", world, "select source, target from edges", "--json")
    )[0]
    what = f"{best['source']}:{best['target']}"
    (card,) = shell.rows_of(shell.invoke("show", world, what, "--json"))
    assert card["is_edge"]
    tokens = {token["token_str"] for token in card["tokens"]}  # type: ignore[attr-defined]
    assert any(
        one["tokens"][one["focus"]] in tokens
        for one in card["examples"]  # type: ignore[attr-defined]
    )
    assert shell.invoke("show", world, what).stdout.startswith("edge ")


def test_show_describes_an_automaton(world: Path) -> None:
    name = shell.rows_of(shell.invoke("automata", world, "--json"))[0]["name"]
    (card,) = shell.rows_of(shell.invoke("show", world, name, "--json"))
    assert card["name"] == name
    assert {"states", "transitions", "scores"} <= set(card)
    assert "EXIT" in shell.invoke("show", world, name).stdout


def test_trace_by_tokens_needs_no_model(world: Path) -> None:
    rows = shell.rows_of(shell.invoke("automata", world, "--json"))
    name = rows[0]["name"]
    (card,) = shell.rows_of(shell.invoke("show", world, name, "--json"))
    token = card["transitions"][0]["tokens"][0]["token_str"]  # type: ignore[index]
    result = shell.invoke(
        "trace", world, name, "-", "--by", "tokens", "--json", stdin=token.encode() * 3
    )
    traced = shell.rows_of(result)
    assert set(traced[0]) == shell.TRACE_COLUMNS
    assert traced[0]["source"] == "-"
    assert any(row["state"] is not None for row in traced)


def test_truth_without_a_model_leaves_neurons_out_and_says_so(world: Path) -> None:
    result = shell.invoke("truth", world, "--kind", "utf8", "--json")
    rows = shell.rows_of(result)
    assert set(rows[0]) == shell.TRUTH_COLUMNS
    readers = [row["what"] for row in rows]
    assert {"features", "token", "token pair", "majority"} <= set(readers)
    assert not any("neuron" in str(reader) for reader in readers)
    assert "Neurons are left out" in result.stderr


def test_truth_names_what_it_looked_for(world: Path) -> None:
    result = shell.invoke("truth", world, "--kind", "html")
    assert result.exit_code == 1
    assert ".html" in result.stderr
