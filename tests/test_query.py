"""Queries read the tables of their run and nothing else; motifs need no feature's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from test_graph import small_graph

from circuits.query import find_motifs
from circuits.sql import query_tables
from sae_core.errors import GraphError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_select_gives_its_rows() -> None:
    graph = small_graph()
    found = graph.sql(
        "select source, count(*) as n from edges group by source order by n desc, source"
    )
    assert found.rows() == [(0, 2), (1, 2), (2, 1), (3, 1), (4, 1)]
    joined = graph.sql(
        "with t as (select * from edge_tokens where token_str = '\\n') "
        "select e.score from edges e join t on e.source = t.source and e.target = t.target"
    )
    assert joined["score"].to_list() == [1.0]
    assert graph.sql("select count(*) as n from automata")["n"].to_list() == [0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("selct * from edges", "begins with SELECT or WITH, got 'selct"),
        ("", "got nothing"),
        ("select * frm edges", "Column: 10"),
        ("select * from edgs", "relation 'edgs' was not found; the tables are nodes"),
        ("select nope from edges", "nope"),
        ("select 1; drop table edges", "'drop' at column 11 changes something"),
        ("create table x as select 1", "begins with SELECT"),
        ("with x as (select 1) insert into edges select 1", "'insert' at column 22 changes"),
        ("truncate table edges", "begins with SELECT"),
        ("select 1; select 2", "one"),
    ],
)
def test_what_is_no_single_select_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(GraphError, match=sentence):
        small_graph().sql(text)


@pytest.mark.parametrize(
    "call",
    [
        "read_csv('{file}')",
        'READ_CSV ("{file}")',
        "\"read_csv\"('{file}')",
        "read_parquet('{file}')",
        "scan_parquet('{file}')",
        "read_json('{file}')",
        "read_ipc('{file}')",
        "read_csv/* */('{file}')",
        "'{file}'",
        '"{file}"',
    ],
)
def test_no_other_file_is_read(tmp_path: Path, call: str) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("a\nsecret\n")
    with pytest.raises(GraphError):
        small_graph().sql("select * from " + call.format(file=file))


def test_words_that_would_write_are_fine_within_text() -> None:
    found = small_graph().sql(
        "select token_str from edge_tokens where token_str <> 'drop; read_csv(''x'')' -- drop it"
    )
    assert len(found) == 4


def test_the_tables_are_not_changed_by_a_query() -> None:
    graph = small_graph()
    before = graph.edges.clone()
    graph.sql("select * from edges order by score")
    assert graph.edges.equals(before)


def test_an_answer_has_at_most_limit_rows() -> None:
    table = pl.DataFrame({"a": range(3000)})
    found = query_tables({"t": table}, "select x.a from t x cross join t y", limit=7)
    assert len(found) == 7
    with pytest.raises(ValueError, match="limit must be >= 1 row, got 0"):
        query_tables({"t": table}, "select * from t", limit=0)


def test_loops_and_pairs_are_found() -> None:
    graph = small_graph()
    assert find_motifs(graph, "loop").rows() == [("loop", [1], 4.0)]
    assert find_motifs(graph, "pair").is_empty()
    back = graph.edges.head(1).with_columns(
        source=pl.lit(1, pl.UInt32), target=pl.lit(0, pl.UInt32), score=0.5
    )
    graph.edges = pl.concat([graph.edges, back])
    assert find_motifs(graph, "pair").rows() == [("pair", [0, 1], 0.5)]


def test_a_chain_follows_best_edges_that_are_best_both_ways() -> None:
    graph = small_graph()
    graph.edges = graph.edges.filter(pl.col("source") != 2)
    assert find_motifs(graph, "chain").rows() == [("chain", [0, 1, 2], 6.0)]


def test_an_unknown_motif_is_refused() -> None:
    with pytest.raises(ValueError, match="no motif 'star'; motifs are loop, pair, chain"):
        find_motifs(small_graph(), "star")
