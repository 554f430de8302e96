"""Faults of automata: files edited by hand, nothing measured, one document, ties, numbers that are none."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import html5lib
import numpy as np
import polars as pl
import pytest
import shell
from paired_run import found_in, write_paired

import circuits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HELD_OUT = ("held_out_retention", "held_out_bits_saved", "held_out_coverage")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_paired(tmp_path_factory.mktemp("paired") / "run")
    found_in(path)
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def file_of(run: Path) -> Path:
    return next((run / "automata").glob("*.json"))


def every_command(run: Path, out: Path) -> list[tuple[object, ...]]:
    name = file_of(run).stem
    return [
        ("show", run, name),
        ("render", run, "-o", out),
        ("page", run, "-o", out / "page.html"),
        ("trace", run, name, run / "manifest.json", "--by", "tokens"),
        ("truth", run, "--kind", "utf8"),
    ]


def assert_refused(result: Any, *words: str) -> None:
    shell.refused(result, *words)
    assert result.stdout == ""


# An automaton edited by hand


EDITS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda it: it["transitions"][0].update(probability="x"), "transitions[0].probability is 'x'"),
    (lambda it: it["transitions"][1].pop("n_pairs"), "transitions[1].n_pairs is missing"),
    (
        lambda it: it["states"][1].update(features=[0, 9]),
        "states[1].features[1] is 9; expected a f",
    ),
    (lambda it: it["states"][0].update(id=-1), "states[0].id is -1; expected an integer"),
    (lambda it: it.update(name="other"), "name is 'other'; expected 'pair-"),
    (lambda it: it.update(scores={"retention": 1e999}), "scores.retention is inf; expected a fin"),
]


@pytest.mark.parametrize(("edit", "said"), EDITS)
def test_an_edited_value_is_named_by_file_and_path_in_it(
    run: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any], said: str
) -> None:
    file, out = file_of(run), tmp_path / "out"
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))
    for words in every_command(run, out):
        assert_refused(
            shell.invoke(*words), f"{file}: {said}", "mend it, or run `circuits automata"
        )
    assert not out.exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no readable JSON (Expecting value: line 1 column 1"),
        (b'{"name": "x"', "no readable JSON (Expecting"),
        (b"[" * 10**6, "no readable JSON (maximum recursion depth"),
        (b'{"name": "x", "name": "y"}', "the key 'name' is there twice"),
        (b"\xff\xfe{\x00}\x00", "codec can't decode byte 0xff in position 0"),
        (b"[]", "the document is []; expected an object"),
    ],
)
def test_a_file_that_is_no_automaton_is_named(run: Path, data: bytes, said: str) -> None:
    file = file_of(run)
    file.write_bytes(data)
    assert_refused(shell.invoke("show", run, file.stem), f"{file}: ", said, "circuits automata")


def test_a_pipe_a_folder_and_nothing_in_place_of_an_automaton_are_named(run: Path) -> None:
    file = file_of(run)
    file.unlink()
    assert_refused(shell.invoke("show", run, file.stem), f"{file} is missing; run `circuits auto")
    for make in (os.mkfifo, os.mkdir):
        make(file)
        assert_refused(shell.invoke("show", run, file.stem), f"{file}: no regular file")
        file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda it: it.drop("rank"), "has no column 'rank' of integers"),
        (lambda it: it.with_columns(name=pl.lit(1)), "has no column 'name' of text"),
        (
            lambda it: it.with_columns(name=pl.lit("../../x")),
            "name of row 0 is '../../x'; expected",
        ),
        (lambda it: it.with_columns(name=pl.lit(None, pl.String)), "name of row 0 is None"),
    ],
)
def test_an_edited_index_is_named_and_leads_to_no_other_file(
    run: Path, edit: Callable[[pl.DataFrame], pl.DataFrame], said: str
) -> None:
    index = run / "automata" / "index.parquet"
    (run.parent / "x.json").write_text(file_of(run).read_text())
    edit(pl.read_parquet(index)).write_parquet(index)
    for words in (("show", run, "x"), ("page", run, "-o", "-"), ("query", run, "select 1")):
        assert_refused(shell.invoke(*words), str(index), said, "circuits automata")


# A graph edited by hand, and M5: numbers that are none


@pytest.mark.parametrize(
    ("table", "edit", "said"),
    [
        ("edges", lambda it: it.drop("lift"), "lacks the column 'lift'; expected source, target"),
        ("edges", lambda it: it.with_columns(source=pl.lit("a")), "a column of the wrong type"),
        (
            "edges",
            lambda it: it.with_columns(target=pl.lit(9)),
            "target of row 0 is 9; expected a f",
        ),
        (
            "edges",
            lambda it: it.with_columns(score=np.nan),
            "score of row 0 is nan; expected a fin",
        ),
        (
            "edges",
            lambda it: it.with_columns(lift=np.inf),
            "lift of row 0 is inf; expected a finite",
        ),
        (
            "edges",
            lambda it: it.with_columns(score=None),
            "score of row 0 is None; expected a value",
        ),
        ("edge_tokens", lambda it: it.drop("token_str"), "lacks the column 'token_str'"),
        ("coactivation", lambda it: it.drop("feature_a"), "lacks the column 'feature_a'"),
    ],
)
def test_an_edited_graph_is_named_by_file_row_and_column(
    run: Path, table: str, edit: Callable[[pl.DataFrame], pl.DataFrame], said: str
) -> None:
    file = run / "graph" / f"{table}.parquet"
    edit(pl.read_parquet(file)).write_parquet(file)
    before = shell.digests(run)
    for words in (
        ("automata", run),
        ("page", run, "-o", "-"),
        ("query", run, "--successors", 0),
        ("show", run, 0),
    ):
        assert_refused(shell.invoke(*words), str(file), said)
    assert shell.digests(run) == before


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["acts", "promotions"])
def test_m5_a_number_that_is_none_is_named_by_document_and_position(
    tmp_path: Path, column: str, number: float, *, held_out: bool
) -> None:
    path = write_paired(tmp_path / "run", held_out=[False, held_out, False, False])
    name = found_in(path)
    shard = next((path / "tokens").glob("*.parquet"))
    tokens = pl.read_parquet(shard)
    row = tokens["doc_id"].to_list().index(1) + 2  # fires in each round's first six tokens
    values = tokens[column].to_list()
    values[row] = [number]
    series = pl.Series(column, values, dtype=tokens.schema[column])
    tokens.with_columns(series).write_parquet(shard)
    text = tmp_path / "text.txt"
    text.write_bytes(circuits.open_run(path).document(1))
    before = shell.digests(path)
    for words in (
        ("automata", path),
        ("show", path, 0),
        ("truth", path, "--kind", "utf8", "--all-documents"),
        ("trace", path, name, text),
    ):
        result = shell.invoke(*words)
        shell.refused(result, f"document 1, position 2: {column} of feature 0 is {number}")
    assert shell.digests(path) == before
    shutil.rmtree(path / "statistics")
    result = shell.invoke("graph", path)
    assert (result.exit_code == 1) != held_out  # what is held out is not counted
    assert np.isfinite(pl.read_parquet(path / "graph" / "edges.parquet")["score"]).all()


# Nothing measured


def shown_everywhere(run: Path, name: str, out: Path) -> dict[str, str]:
    """Give what the table, the card, the picture and the page say of an automaton's scores."""
    shell.invoke("render", run, name, "-o", out)
    shell.invoke("page", run, "-o", out / "page.html")
    tree = html5lib.parse((out / "page.html").read_text(), namespaceHTMLElements=False)
    cells = ["".join(node.itertext()) for node in tree.iter("tr")]
    return {
        "table": shell.invoke("automata", run).stdout,
        "card": shell.invoke("show", run, name).stdout,
        "picture": (out / f"{name}.svg").read_text(),
        "page": "\n".join([*cells, *("".join(node.itertext()) for node in tree.iter("dl"))]),
    }


def test_without_held_out_text_every_output_says_not_measured(run: Path, tmp_path: Path) -> None:
    name = file_of(run).stem
    for place, text in shown_everywhere(run, name, tmp_path / "out").items():
        assert "not measured" in text, place
        assert "nan" not in text.lower().replace("dominant", ""), place
    result = shell.invoke("automata", run, "--json")
    (row,) = json.loads(result.stdout)
    assert [row[key] for key in HELD_OUT] == [None, None, None]
    assert "No document is held out: held-out scores are not measured" in result.stderr
    scores = json.loads(file_of(run).read_text())["scores"]
    assert [scores[key] for key in HELD_OUT] == [None, None, None]
    assert scores["retention"] > 0.5


def test_with_held_out_text_nothing_is_unmeasured(tmp_path: Path) -> None:
    path = write_paired(tmp_path / "run", held_out=[False, False, False, True])
    name = found_in(path)
    for place, text in shown_everywhere(path, name, tmp_path / "out").items():
        assert "not measured" not in text, place
    assert "not measured" not in shell.invoke("automata", path).stderr


@pytest.mark.parametrize("kept", ["none", "one", "no step inside"])
def test_g9_held_out_text_with_hardly_a_firing_measures_what_it_can(
    tmp_path: Path, kept: str
) -> None:
    path = write_paired(tmp_path / "run", held_out=[False, False, False, True])
    shard = next((path / "tokens").glob("*.parquet"))
    tokens = pl.read_parquet(shard).with_row_index("row")
    held = pl.col("doc_id") == 3
    first = tokens.filter(held)["row"].min()
    fires = {
        "none": pl.lit(False),
        "one": pl.col("row") == first,
        "no step inside": pl.col("pos") % 26 == 0,
    }
    keep = ~held | fires[kept]
    emptied = [
        pl.when(keep).then(name).otherwise([]).alias(name)
        for name in ("features", "acts", "promotions")
    ]
    types = {name: tokens.schema[name] for name in ("features", "acts", "promotions")}
    tokens.with_columns(emptied).drop("row").cast(types).write_parquet(shard)
    found_in(path)
    scores = json.loads(file_of(path).read_text())["scores"]
    assert (scores["held_out_coverage"] > 0) == (kept != "none")
    assert scores["held_out_retention"] == (None if kept == "none" else 0.0)
    assert scores["held_out_steps_explained"] is None
    bits = scores["held_out_bits_saved"]
    assert (bits is None) == (kept == "none")
    assert bits is None or np.isfinite(bits)


# Little text


def test_one_document_works_and_says_what_cannot_be_estimated(tmp_path: Path) -> None:
    path = write_paired(tmp_path / "run", n_documents=1)
    name = found_in(path)
    for words in every_command(path, tmp_path / "out"):
        assert shell.invoke(*words).exit_code == 0, words
    result = shell.invoke("truth", path, "--kind", "utf8", "--json")
    rows = shell.rows_of(result)
    assert name in " ".join(str(row["what"]) for row in rows)
    for row in rows:
        ends = [value for key, value in row.items() if key.endswith(("low", "high"))]
        assert ends == [None] * 6
        assert row["accuracy"] is not None
    assert "One document: its second half is scored, and no interval can" in result.stderr
    assert "nan" not in shell.invoke("truth", path, "--kind", "utf8").stdout


def test_a_run_that_is_all_held_out_says_so(tmp_path: Path) -> None:
    path = write_paired(tmp_path / "run", held_out=[True] * 4)
    result = shell.invoke("graph", path)
    assert result.exit_code == 0
    assert "every document is held out; hold out fewer" in result.stderr
    result = shell.invoke("automata", path, "--json")
    assert (result.exit_code, result.stdout) == (0, "[]\n")
    assert "every document is held out; hold out fewer" in result.stderr


def test_g1_automata_not_looked_for_and_none_found_are_told_apart(
    run: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / "automata")
    never = f"automata were not looked for yet; run `circuits automata {run}`"
    for words, code in (
        (("render", run, "-o", tmp_path / "out"), 0),
        (("render", run, "x", "-o", tmp_path / "out"), 1),
        (("show", run, "x"), 2),
        (("trace", run, "x", run / "manifest.json"), 1),
    ):
        result = shell.invoke(*words)
        assert (result.exit_code, never in result.stderr) == (code, True), words
    assert never in shell.invoke("page", run, "-o", "-").stdout
    edges = pl.read_parquet(run / "graph" / "edges.parquet")
    edges.clear().write_parquet(run / "graph" / "edges.parquet")
    assert shell.invoke("automata", run).exit_code == 0
    result = shell.invoke("render", run, "-o", tmp_path / "out")
    assert (
        f"no automaton was found; `circuits automata {run}` says what is nearest" in result.stderr
    )
    assert not (tmp_path / "out").exists()


# The row G8, ties


def test_g8_the_order_of_a_table_s_rows_changes_no_automaton(run: Path) -> None:
    found = []
    for seed in (None, 1, 2):
        names = ["vocabulary", "documents", "features", "graph/edge_tokens", "graph/edges"]
        for name in names if seed else ():
            file = run / f"{name}.parquet"
            pl.read_parquet(file).sample(fraction=1, shuffle=True, seed=seed).write_parquet(file)
        page = shell.invoke("page", run, "-o", "-").stdout
        assert shell.invoke("automata", run).exit_code == 0
        states = json.loads(file_of(run).read_text())
        states.pop("provenance")  # the hash of what was read
        found.append((states, page.count("<tr")))
    assert found[0] == found[1] == found[2]
