"""Each command does its work, says so where it should, and prints what scripts rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import click
import numpy as np
import polars as pl
import pytest
import shell
import tiny
from drawn import html_system
from planted import planted_world

import cli
from circuits.discover import write_automata
from sae_core import console
from sae_core.store import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

COMMANDS = sorted(cli.cli.commands)
TRACE_COLUMNS = {
    "source", "doc_id", "pos", "token_str", "byte_end", "state", "features", "probability",
    "promoted",
}  # fmt: skip


def rows_of(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert isinstance(rows, list)
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made elsewhere, with its graph and automata."""
    path = tmp_path_factory.mktemp("planted") / "run"
    planted_world(path, n_tokens=40_000)
    assert shell.invoke("graph", path).exit_code == 0
    assert shell.invoke("automata", path).exit_code == 0
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a dictionary and texts."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_model(folder / "model")
    shell.write_sae(folder / "sae")
    for at in range(6):
        shell.write_text(folder / "texts" / f"{at}.html", 40, seed=1000 * at)
    return folder


@pytest.fixture(scope="module")
def gathered(parts: Path) -> Path:
    """A run of the tiny model, with a graph and an automaton drawn by hand."""
    out = parts / "run"
    result = gather(parts, parts / "texts", out)
    assert result.exit_code == 0, result.stderr
    assert shell.invoke("graph", out).exit_code == 0
    automaton = html_system().to_json().replace("311", "21").replace("408", "22")
    automaton = automaton.replace("494", "23")
    write_automata(out, [type(html_system()).from_json(automaton)])
    return out


def gather(parts: Path, text: Path, out: Path, *options: object) -> Result:
    model, sae = parts / "model", parts / "sae"
    return shell.invoke("gather", text, "-o", out, "--model", model, "--sae", sae, *options)


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
    rows = rows_of(shell.invoke("automata", world, "--json"))
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert {"name", "title", "kind", "rank", "n_states", "retention"} <= set(rows[0])
    assert {row["kind"] for row in rows} <= {"loop", "pair", "system", "chain"}
    table = shell.invoke("automata", world).stdout.splitlines()
    assert table[0].split()[:3] == ["rank", "name", "kind"]
    assert len(table) == len(rows) + 1


def test_render_writes_pictures_that_parse(world: Path, tmp_path: Path) -> None:
    result = shell.invoke("render", world, "-o", tmp_path, "--format", "svg,dot,html")
    assert result.exit_code == 0, result.stderr
    names = [row["name"] for row in rows_of(shell.invoke("automata", world, "--json"))]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{ending}" for name in names for ending in ("svg", "dot", "html")
    )
    for path in tmp_path.glob("*.svg"):
        assert ET.parse(path).getroot().tag.endswith("svg")


def test_render_of_one_name_can_be_zoomed_and_printed(world: Path) -> None:
    rows = rows_of(shell.invoke("automata", world, "--json"))
    largest = max(rows, key=lambda row: int(str(row["n_states"])))
    words = ["render", world, largest["name"], "-o", "-", "--format", "dot"]
    full, small = shell.invoke(*words), shell.invoke(*words, "--states", 2)
    assert full.stdout.count(" [label=<") == largest["n_states"]
    assert small.stdout.count(" [label=<") == 2


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
    rows = rows_of(shell.invoke("query", world, *question, "--json"))
    assert all(column in row for row in rows)


def test_query_walks_the_graph(world: Path) -> None:
    best = rows_of(shell.invoke("query", world, "select source, target from edges", "--json"))[0]
    source, target = best["source"], best["target"]
    after = rows_of(shell.invoke("query", world, "--successors", source, "--json"))
    before = rows_of(shell.invoke("query", world, "--predecessors", target, "--json"))
    paths = rows_of(shell.invoke("query", world, "--path", source, target, "--json"))
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
    (card,) = rows_of(shell.invoke("show", world, "3", "--json"))
    assert {"density", "promoted_tokens", "suppressed_tokens", "successors"} <= set(card)
    values = [one["act"] for one in card["examples"]]  # type: ignore[attr-defined]
    assert values
    assert max(values) == pytest.approx(card["max_act"])
    text = shell.invoke("show", world, "3").stdout
    assert text.startswith("feature 3: ")
    assert "[[" in text


def test_show_describes_an_edge_by_the_text_where_it_ran(world: Path) -> None:
    best = rows_of(shell.invoke("query", world, "select source, target from edges", "--json"))[0]
    what = f"{best['source']}:{best['target']}"
    (card,) = rows_of(shell.invoke("show", world, what, "--json"))
    assert card["is_edge"]
    tokens = {token["token_str"] for token in card["tokens"]}  # type: ignore[attr-defined]
    assert any(
        one["tokens"][one["focus"]] in tokens
        for one in card["examples"]  # type: ignore[attr-defined]
    )
    assert shell.invoke("show", world, what).stdout.startswith("edge ")


def test_show_describes_an_automaton(world: Path) -> None:
    name = rows_of(shell.invoke("automata", world, "--json"))[0]["name"]
    (card,) = rows_of(shell.invoke("show", world, name, "--json"))
    assert card["name"] == name
    assert {"states", "transitions", "scores"} <= set(card)
    assert "EXIT" in shell.invoke("show", world, name).stdout


def test_trace_by_tokens_needs_no_model(world: Path) -> None:
    rows = rows_of(shell.invoke("automata", world, "--json"))
    name = rows[0]["name"]
    (card,) = rows_of(shell.invoke("show", world, name, "--json"))
    token = card["transitions"][0]["tokens"][0]["token_str"]  # type: ignore[index]
    result = shell.invoke(
        "trace", world, name, "-", "--by", "tokens", "--json", stdin=token.encode() * 3
    )
    traced = rows_of(result)
    assert set(traced[0]) == TRACE_COLUMNS
    assert traced[0]["source"] == "-"
    assert any(row["state"] is not None for row in traced)


def test_truth_without_a_model_leaves_neurons_out_and_says_so(world: Path) -> None:
    result = shell.invoke("truth", world, "--kind", "utf8", "--json")
    rows = rows_of(result)
    assert set(rows[0]) == {"what", "accuracy", "macro_f1", "low", "high", "n_tokens"}
    readers = [row["what"] for row in rows]
    assert {"features", "token", "token pair", "majority"} <= set(readers)
    assert not any("neuron" in str(reader) for reader in readers)
    assert "Neurons are left out" in result.stderr


def test_truth_names_what_it_looked_for(world: Path) -> None:
    result = shell.invoke("truth", world, "--kind", "html")
    assert result.exit_code == 1
    assert ".html" in result.stderr


# A run of a model


def test_gather_continues_completes_and_refuses(parts: Path, gathered: Path) -> None:
    before = shell.digests(gathered / "tokens")
    again = gather(parts, parts / "texts", gathered)
    assert again.exit_code == 0
    assert "complete" in again.stderr
    assert shell.digests(gathered / "tokens") == before


def test_trace_by_features_reads_new_text_with_the_model(parts: Path, gathered: Path) -> None:
    text = shell.write_text(parts / "new.html", 3, seed=9)
    rows = rows_of(shell.invoke("trace", gathered, "html-tags", text, "--json"))
    assert set(rows[0]) == TRACE_COLUMNS
    assert rows[-1]["byte_end"] == text.stat().st_size
    assert any(row["features"] for row in rows)
    by_tokens = rows_of(
        shell.invoke("trace", gathered, "html-tags", text, "--by", "tokens", "--json")
    )
    ends = [row["byte_end"] for row in rows]
    assert [row["byte_end"] for row in by_tokens] == ends  # the same tokenizer, without the model


def test_truth_measures_neurons_beside_features_once(gathered: Path) -> None:
    first = shell.invoke("truth", gathered, "--kind", "html", "--all-documents", "--json")
    readers = [row["what"] for row in rows_of(first)]
    assert {"features", "neurons", "neurons at equal L0", "neuron probe, all"} <= set(readers)
    assert "automaton html-tags" in readers
    kept = list((gathered / "truth").glob("*"))
    assert len(kept) == 1
    again = shell.invoke("truth", gathered, "--kind", "html", "--all-documents", "--json")
    assert again.stdout == first.stdout
    assert list((gathered / "truth").glob("*")) == kept


def test_evaluate_prints_the_fixed_fields(parts: Path) -> None:
    model, sae = parts / "model", parts / "sae"
    texts = parts / "texts" / "0.html"
    rows = rows_of(
        shell.invoke(
            "evaluate", texts, "--model", model, "--sae", sae, "--sae", "neurons", "--json"
        )
    )
    assert list(rows[0]) == [
        "sae", "n_tokens", "l0", "fvu", "loss_clean", "loss_sae", "loss_zero", "loss_recovered",
        "n_dead", "n_ultralow", "dead_share",
    ]  # fmt: skip
    assert rows[1]["sae"] == "neurons"
    assert rows[1]["fvu"] == pytest.approx(0.0, abs=1e-6)


def test_merge_gives_the_same_bytes_in_any_order(parts: Path) -> None:
    runs = []
    for at in (4, 5):
        runs.append(parts / f"part{at}")
        assert gather(parts, parts / "texts" / f"{at}.html", runs[-1]).exit_code == 0
    for name, order in (("ab", runs), ("ba", runs[::-1])):
        assert shell.invoke("merge", *order, "-o", parts / name).exit_code == 0
    assert shell.digests(parts / "ab") == shell.digests(parts / "ba")
    assert rows_of(shell.invoke("verify", parts / "ab", "--json"))


def test_merged_sums_are_those_of_the_whole(parts: Path) -> None:
    whole = parts / "whole"
    for at in (0, 1):
        assert gather(parts, parts / "texts" / f"{at}.html", parts / f"m{at}").exit_code == 0
    both = [parts / "texts" / f"{at}.html" for at in (0, 1)]
    options = ("-o", whole, "--model", parts / "model", "--sae", parts / "sae")
    assert shell.invoke("gather", *both, *options).exit_code == 0
    assert shell.invoke("merge", parts / "m0", parts / "m1", "-o", parts / "sum").exit_code == 0
    assert shell.digests(parts / "sum" / "statistics") == shell.digests(whole / "statistics")
    merged = pl.read_parquet(parts / "sum" / "tokens" / "*.parquet")
    assert len(merged) == len(pl.read_parquet(whole / "tokens" / "*.parquet"))
    assert merged["window_id"].is_sorted()
    assert merged["doc_id"].n_unique() == 2


def test_train_model_and_train_sae_make_what_gather_reads(tmp_path: Path) -> None:
    tokenizer = tiny.write_tokenizer(tmp_path / "tokenizer.json")
    train = tiny.write_tokens(tmp_path / "train.bin")
    validation = tiny.write_tokens(tmp_path / "validation.bin", n_documents=4, seed=1)
    model, sae = tmp_path / "model", tmp_path / "sae"
    sizes = "--d-model 16 --n-heads 2 --d-mlp 24 --n-ctx 16 --batch-windows 4 --tokens 640"
    result = shell.invoke(
        "train-model", train, validation, "-o", model, "--tokenizer", tokenizer, *sizes.split()
    )
    assert result.exit_code == 0, result.stderr
    more = "--features 32 --active 3 --activations 512 --batch-size 64 --block-windows 8"
    result = shell.invoke("train-sae", model, train, "-o", sae, *more.split())
    assert result.exit_code == 0, result.stderr
    text = shell.write_text(tmp_path / "text.html", 20)
    out = tmp_path / "run"
    result = shell.invoke("gather", text, "-o", out, "--model", model, "--sae", sae)
    assert result.exit_code == 0, result.stderr


def test_demo_takes_text_to_pictures_and_the_second_time_is_complete(
    parts: Path, tmp_path: Path
) -> None:
    options = ["--model", parts / "model", "--sae", parts / "sae", "--max-tokens", 4000]
    first = shell.invoke("demo", "-o", tmp_path / "a", *options, "--json")
    rows = rows_of(first)
    assert (tmp_path / "a" / "index.html").is_file()
    for row in rows:
        assert set(row) == {"automaton", "kind", "retention", "held_out_retention", "file"}
        assert (tmp_path / "a" / "automata" / f"{row['automaton']}.svg").is_file()
    before = shell.digests(tmp_path / "a")
    again = shell.invoke("demo", "-o", tmp_path / "a", *options, "--json")
    assert "complete" in again.stderr
    assert again.stdout == first.stdout
    assert shell.digests(tmp_path / "a") == before
    shell.invoke("demo", "-o", tmp_path / "b", *options)
    assert shell.digests(tmp_path / "b") == before


def test_a_table_names_its_documents_wherever_it_lies(parts: Path, tmp_path: Path) -> None:
    hashes = []
    for folder in ("here", "there"):
        table = tmp_path / folder / "texts.parquet"
        table.parent.mkdir()
        rows = {"source": ["html/one/a.html", "html/two/b.html"], "text": ["<p>a b", "<p>c d"]}
        pl.DataFrame(rows).write_parquet(table)
        out = tmp_path / folder / "run"
        assert gather(parts, table, out).exit_code == 0
        sources = pl.read_parquet(out / "documents.parquet")["source"].to_list()
        assert sources == rows["source"]
        hashes.append(read_manifest(out).settings["documents_hash"])
    assert hashes[0] == hashes[1]


def test_numbers_without_a_json_word_are_null() -> None:
    assert console._finite([{"a": float("nan"), "b": [np.inf, 1.0]}]) == [
        {"a": None, "b": [None, 1.0]}
    ]
