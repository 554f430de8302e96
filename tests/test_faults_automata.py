"""Faults of automata and graphs that are read back: edited by hand, damaged, with numbers that are none."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import shell
from paired_run import every_command, file_of, found_in, write_paired

import circuits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_paired(tmp_path_factory.mktemp("paired") / "run")
    found_in(path)
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


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
            "score of row 0 is None; expected a finite number",
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
        *([("trace", path, name, text)] if column == "acts" else []),  # it reads no promotions
    ):
        result = shell.invoke(*words)
        shell.refused(result, f"document 1, position 2: {column} of feature 0 is {number}")
    assert shell.digests(path) == before
    shutil.rmtree(path / "statistics")
    result = shell.invoke("graph", path)
    assert (result.exit_code == 1) != held_out  # what is held out is not counted
    assert pl.read_parquet(path / "graph" / "edges.parquet")["score"].is_finite().all()
