"""The graph of a run: built whole from sums or from tokens, walked, cut and asked about."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import naive
import numpy as np
import planted
import polars as pl
import pytest

import circuits
from circuits.graph import FeatureGraph
from sae_core import statistics
from sae_core.errors import StoreError, StoreMismatchError
from sae_core.store import Manifest, read_manifest, read_tokens, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("edges.parquet", "edge_tokens.parquet", "coactivation.parquet", "graph.json")
EDGES = [(0, 1), (1, 2), (2, 0), (1, 1), (0, 3), (3, 2), (4, 5)]
IN_CONTEXT = "predicted_in_context"


def small_graph() -> FeatureGraph:
    """Make seven features, 6 of them alone, with the edges above, best first."""
    frame = pl.DataFrame(EDGES, schema={"source": pl.UInt32, "target": pl.UInt32}, orient="row")
    edges = frame.with_columns(
        pl.Series("score", np.arange(len(EDGES), 0, -1, dtype=np.float64)),
        pl.Series("n_pairs", range(10, 10 + len(EDGES))),
    )
    tokens = pl.DataFrame(
        {
            "source": [0, 0, 1, 4],
            "target": [1, 1, 2, 5],
            "token_id": [7, 8, 7, 9],
            "token_str": [" href", "href", " href", "\\n"],
            "share": [0.75, 0.25, 1.0, 1.0],
        },
        schema_overrides={"source": pl.UInt32, "target": pl.UInt32},
    )
    nodes = pl.DataFrame({"feature_idx": pl.Series(range(7), dtype=pl.UInt32), "n_fires": [9] * 7})
    return FeatureGraph(nodes, edges, tokens)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> planted.PlantedWorld:
    hidden = planted.planted_world(tmp_path_factory.mktemp("planted") / "run", n_tokens=20_000)
    circuits.build_graph(hidden.path)
    return hidden


def test_neighbours_come_best_first() -> None:
    graph = small_graph()
    assert graph.successors(1)["target"].to_list() == [2, 1]
    assert graph.predecessors(2)["source"].to_list() == [1, 3]
    assert graph.successors(6).is_empty()


def test_tokens_of_an_edge_come_best_first() -> None:
    graph = small_graph()
    assert graph.tokens(0, 1)["token_str"].to_list() == [" href", "href"]
    assert graph.tokens(1, 0).is_empty()


def test_edges_are_found_by_token_exactly_or_with_leading_spaces() -> None:
    graph = small_graph()
    assert graph.with_token("href").select("source", "target").rows() == [(0, 1)]
    stripped = graph.with_token("href", strip=True)
    assert stripped.select("source", "target", "score").rows() == [(0, 1, 7), (0, 1, 7), (1, 2, 6)]
    assert graph.with_token("\\n")["source"].to_list() == [4]


def test_paths_come_shortest_first_and_never_repeat_a_feature() -> None:
    graph = small_graph()
    assert graph.paths(0, 2, max_length=4) == [(0, 1, 2), (0, 3, 2)]
    assert graph.paths(0, 2, max_length=1) == []
    assert graph.paths(0, 5) == []
    assert graph.paths(0, 2, limit=1) == [(0, 1, 2)]


def test_paths_from_a_feature_to_itself_are_its_cycles() -> None:
    graph = small_graph()
    assert graph.paths(1, 1) == [(1, 1), (1, 2, 0, 1)]
    assert graph.paths(0, 0) == [(0, 1, 2, 0), (0, 3, 2, 0)]


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_paths_equal_those_of_networkx(seed: int) -> None:
    import networkx as nx  # noqa: PLC0415 - one use

    rng = np.random.default_rng(seed)
    pairs = sorted({(int(i), int(j)) for i, j in rng.integers(0, 9, (30, 2))})
    frame = pl.DataFrame(pairs, schema={"source": pl.UInt32, "target": pl.UInt32}, orient="row")
    nodes = pl.DataFrame({"feature_idx": range(9)})
    graph = FeatureGraph(nodes, frame.with_columns(score=1.0), small_graph().edge_tokens)
    expected = {tuple(p) for p in nx.all_simple_paths(nx.DiGraph(pairs), 0, 5, cutoff=4)}
    assert expected
    assert set(graph.paths(0, 5, max_length=4, limit=10**6)) == expected


def test_a_subgraph_keeps_the_edges_between_its_features() -> None:
    part = small_graph().subgraph([0, 1, 6])
    assert part.nodes["feature_idx"].to_list() == [0, 1, 6]
    assert part.edges.select("source", "target").rows() == [(0, 1), (1, 1)]
    assert part.edge_tokens["token_str"].to_list() == [" href", "href"]
    with pytest.raises(ValueError, match=r"there is no feature 2; features are 3 of 0\.\.6"):
        part.successors(2)


@pytest.mark.parametrize("index", [-1, 7, 2**40])
def test_an_unknown_feature_is_refused_with_the_valid_range(index: int) -> None:
    graph = small_graph()
    for ask in (graph.successors, graph.predecessors, lambda i: graph.tokens(0, i)):
        with pytest.raises(ValueError, match=rf"no feature {index}; features are 0\.\.6"):
            ask(index)


@pytest.mark.parametrize("index", ["3", 1.0, None])
def test_what_is_no_index_is_refused_with_the_valid_range(index: object) -> None:
    with pytest.raises(ValueError, match=r"is no feature index; features are 0\.\.6"):
        small_graph().paths(0, index)  # type: ignore[arg-type]


def test_networkx_gets_every_node_edge_and_column() -> None:
    graph = small_graph().to_networkx()
    assert sorted(graph.nodes) == list(range(7))
    assert sorted(graph.edges) == sorted(EDGES)
    assert graph.edges[0, 1]["tokens"] == [" href", "href"]
    assert graph.edges[1, 1]["score"] == 4
    assert graph.nodes[6]["n_fires"] == 9


def test_adjacency_has_sources_as_rows() -> None:
    matrix = small_graph().adjacency("n_pairs").toarray()
    assert matrix.shape == (7, 7)
    assert matrix[4, 5] == 16
    assert matrix[5, 4] == 0


def test_a_graph_without_features_answers_and_refuses_politely() -> None:
    nothing = FeatureGraph(*(frame.clear() for frame in (
        small_graph().nodes, small_graph().edges, small_graph().edge_tokens
    )))  # fmt: skip
    assert nothing.d_sae == 0
    assert nothing.to_networkx().number_of_nodes() == 0
    with pytest.raises(ValueError, match="the graph has no features"):
        nothing.successors(0)


def test_a_run_from_elsewhere_gets_its_graph_with_no_model(world: planted.PlantedWorld) -> None:
    graph = circuits.open_run(world.path).graph
    assert len(graph.nodes) == read_manifest(world.path).d_sae
    assert planted.average_precision(world.judged(graph.edges), world.truth_edges) > 0.9
    assert graph.reason == ""
    assert (world.path / "features.parquet").is_file()
    held = statistics.collect(
        read_tokens(world.path, held_out=False),
        len(graph.nodes),
        graph.run.manifest.d_vocab,  # type: ignore[union-attr]
    )
    assert graph.run is not None
    assert graph.run.statistics.n_tokens == held.n_tokens


def test_building_again_gives_the_same_bytes(world: planted.PlantedWorld) -> None:
    before = {name: (world.path / "graph" / name).read_bytes() for name in FILES}
    features = (world.path / "features.parquet").read_bytes()
    shutil.rmtree(world.path / "statistics")
    (world.path / "features.parquet").unlink()
    circuits.build_graph(world.path)
    assert {name: (world.path / "graph" / name).read_bytes() for name in FILES} == before
    assert (world.path / "features.parquet").read_bytes() == features
    assert not list(world.path.rglob("*.tmp"))


def test_sums_alone_give_the_same_graph_but_for_what_only_tokens_tell(
    world: planted.PlantedWorld, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(world.path, copy)
    shutil.rmtree(copy / "tokens")
    shutil.rmtree(copy / "graph")
    edges = circuits.build_graph(copy).edges
    for name in FILES[1:]:
        assert (copy / "graph" / name).read_bytes() == (world.path / "graph" / name).read_bytes()
    whole = circuits.open_run(world.path).graph.edges
    assert edges.drop(IN_CONTEXT).equals(whole.drop(IN_CONTEXT))
    assert (edges[IN_CONTEXT].count(), whole[IN_CONTEXT].count()) == (0, len(whole))


def test_a_run_without_edges_gets_empty_tables_and_a_reason(tmp_path: Path) -> None:
    hidden = planted.planted_world(tmp_path / "run", n_tokens=300, machine_share=1e-9, held_out=0.0)
    graph = circuits.build_graph(hidden.path)
    assert graph.edges.is_empty()
    assert graph.sql("select count(*) as n from edges")["n"].to_list() == [0]
    assert "give more text" in graph.reason
    assert circuits.open_run(hidden.path).graph.reason == graph.reason


def test_a_run_whose_documents_are_all_held_out_gets_an_empty_graph(tmp_path: Path) -> None:
    hidden = planted.planted_world(tmp_path / "run", n_tokens=2000, held_out=1.1)
    graph = circuits.build_graph(hidden.path)
    assert graph.edges.is_empty()
    assert "no token was counted" in graph.reason


def test_an_unfinished_run_is_refused(world: planted.PlantedWorld, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(world.path, copy)
    manifest = read_manifest(copy)
    write_manifest(copy, Manifest(manifest.d_sae, manifest.d_vocab, complete=False))
    with pytest.raises(StoreError, match="is not finished; run the same `circuits gather` again"):
        circuits.build_graph(copy)
    write_manifest(copy, Manifest(manifest.d_sae + 1, manifest.d_vocab))
    with pytest.raises(StoreMismatchError, match="the manifest says"):
        circuits.build_graph(copy)


def test_the_order_of_documents_does_not_matter_to_the_sums(world: planted.PlantedWorld) -> None:
    tokens, manifest = read_tokens(world.path), read_manifest(world.path)
    middle = naive.cuts(tokens)[3]
    parts = [naive.part(tokens, middle, len(tokens.doc_ids)), naive.part(tokens, 0, middle)]
    sums = [statistics.collect(part, manifest.d_sae, manifest.d_vocab) for part in parts]
    whole = statistics.collect(tokens, manifest.d_sae, manifest.d_vocab)
    assert statistics.merge(sums).transitions.equals(whole.transitions)
