"""Faults of graphs: nothing found, many features, cycles everywhere, ties, statistics of almost nothing."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import naive
import networkx as nx
import numpy as np
import planted
import polars as pl
import pytest
import shell
from hypothesis import given, settings
from hypothesis import strategies as st

import circuits
import sae_core
from circuits import evidence
from circuits.edge_tables import build_edges
from circuits.evidence import pair_table
from circuits.graph import FeatureGraph
from circuits.graph_memory import say_or_refuse
from circuits.query import find_motifs
from sae_core.errors import GraphError
from sae_core.memory import Free
from sae_core.run_writer import vocabulary_frame
from sae_core.statistics import collect

if TYPE_CHECKING:
    from pathlib import Path

D_SAE = 131_072
MEGABYTE = 10**6
WORDS = vocabulary_frame([b"a", b"b", b"c", b"d", b"e"])
ID = {"source": pl.UInt32, "target": pl.UInt32}


def run_of(path: Path, rows: list[list[int]], d_sae: int, *, nats: float = 1.0) -> Path:
    """Write a run of one document whose tokens carry these features."""
    sizes = [len(row) for row in rows]
    n_entries = sum(sizes)
    return sae_core.write_run(
        path,
        documents=["text"],
        tokens={"doc_id": np.zeros(len(rows), int), "token_id": np.arange(len(rows)) % 3},
        indptr=np.cumsum([0, *sizes]),
        features=[feature for row in rows for feature in row],
        acts=np.ones(n_entries),
        promotions=np.full(n_entries, nats),
        vocabulary=[b"a", b"b", b"c"],
        d_sae=d_sae,
    )


# The row G1, nothing found


@pytest.mark.parametrize(
    ("rows", "d_sae", "sentence"),
    [
        ([[0]] * 8, 1, r"no two features that fire 10 times .* \(the most frequent pair: 7\)"),
        ([[0], [1], []] * 3, 2, r"no two features that fire 10 times .* \(the most frequent pair"),
        ([[]] * 50, 1, r"no two features .* \(the most frequent pair: 0\)"),
        ([[0]], 1, "no token has a successor"),
        ([[0, 1]] * 40, 2, "no feature follows another more often than chance"),
    ],
)
def test_g1_a_graph_without_edges_says_what_is_nearest(
    tmp_path: Path, rows: list[list[int]], d_sae: int, sentence: str
) -> None:
    run = run_of(tmp_path / "run", rows, d_sae)
    done = shell.invoke("graph", run)
    assert done.exit_code == 0
    assert re.search(sentence, done.stderr), done.stderr
    opened = circuits.open_run(run)
    assert opened.graph.edges.is_empty()
    assert re.search(sentence, opened.graph.reason)
    assert opened.graph.to_networkx().number_of_nodes() == d_sae
    assert opened.graph.adjacency().shape == (d_sae, d_sae)
    assert opened.graph.paths(0, 0) == []
    for motif in ("loop", "pair", "chain"):
        assert find_motifs(opened.graph, motif).is_empty()


def test_g1_pairs_that_fail_the_test_name_the_nearest_q(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [np.flatnonzero(row).tolist() for row in rng.random((600, 6)) < 0.1]
    done = shell.invoke("graph", run_of(tmp_path / "run", rows, 6))
    said = re.search(r"at q < 0.05; the nearest, \d -> \d, has q = ([\d.e-]+)", done.stderr)
    assert said, done.stderr
    assert 0.05 <= float(said[1]) <= 1


@pytest.mark.parametrize(
    ("rows", "nats", "sentence"),
    [
        ([[0], [1], [], [2], [], [], []] * 20, 0.11, r"the best, 0 -> 1, has score .* is wanted\)"),
        ([[0], [1], [], [2], [], [], []] * 20, 3.0, r"1 strong edges make no loop, no pair"),
        ([[0], [1], [0], [1], *[[]] * 20] * 15, 3.0, r"of features 0, 1, takes \d+ steps \(200 "),
    ],
)
def test_g1_edges_that_make_no_automaton_name_the_nearest(
    tmp_path: Path, rows: list[list[int]], nats: float, sentence: str
) -> None:
    run = run_of(tmp_path / "run", rows, 3, nats=nats)
    assert shell.invoke("graph", run).exit_code == 0
    assert len(circuits.open_run(run).graph.edges) > 0
    done = shell.invoke("automata", run, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])
    assert re.search("No automaton was found: .*" + sentence, done.stderr), done.stderr
    assert circuits.open_run(run).automata == ()


# The row G2, many features

LARGE = """
import sys
from pathlib import Path
import numpy as np
import cli, sae_core, sae_core.store
from circuits import build, discover, steps

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

run, hidden, d_sae = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokens = sae_core.store.read_tokens(Path(hidden))
n_used = int(tokens.features.max()) + 1
spread = np.linspace(0, d_sae - 1, n_used).astype(int)
sae_core.write_run(
    run,
    documents=[str(at) for at in range(int(tokens.doc_ids.max()) + 1)],
    tokens={name: getattr(tokens, f"{name}s") for name in ("doc_id", "token_id")},
    indptr=tokens.indptr,
    features=spread[tokens.features],
    acts=tokens.acts,
    promotions=tokens.promotions,
    vocabulary=[b"%d" % at for at in range(int(tokens.token_ids.max()) + 1)],
    d_sae=d_sae,
)
before = peak()
for words in (["graph"], ["automata"], ["query", "select * from edges"], ["show", str(d_sae - 1)]):
    try:
        cli.cli.main([words[0], run, *words[1:]], prog_name="circuits")
    except SystemExit as done:
        assert not done.code, words
    print(words[0], peak() - before, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the most memory taken")
def test_g2_as_many_features_as_the_largest_dictionary_take_what_was_said(tmp_path: Path) -> None:
    hidden = planted.planted_world(tmp_path / "hidden", n_tokens=10_000).path
    command = [sys.executable, "-c", LARGE, str(tmp_path / "run"), str(hidden), str(D_SAE)]
    done = subprocess.run(
        command, env=shell.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = re.findall(r"takes about ([\d,]+) MB of memory", done.stderr)
    assert [one.split(" takes")[0] for one in done.stderr.splitlines()[:2]] == [
        "counting the tokens",
        "building the graph",
    ]
    most = max(int(one.replace(",", "")) for one in said) * MEGABYTE
    peaks = {name: int(n) for name, n in re.findall(r"^(\w+) (\d+)$", done.stderr, re.MULTILINE)}
    assert 0 < peaks["graph"] < most
    assert most < 800 * MEGABYTE  # one byte for each pair of features would be 17,180
    assert peaks["automata"] < most + 200 * MEGABYTE
    assert len(circuits.open_run(tmp_path / "run").automata) > 0


def test_g2_a_graph_that_does_not_fit_is_refused_before_the_work() -> None:
    said: list[str] = []
    with pytest.raises(GraphError, match="takes about 3,000 MB of memory, and this machine leaves"):
        say_or_refuse("building", 3 * 10**9, said.append, Free(10**9, "this machine"))
    assert said == []
    say_or_refuse("building", 3 * 10**8, said.append, Free(10**9, "this machine"))
    assert said == ["building takes about 300 MB of memory; this machine leaves 1,000 MB."]


# The row G3, cycles everywhere


def graph_of(edges: list[tuple[int, int]], n: int, n_tokens: int = 3) -> FeatureGraph:
    """Give a graph of these edges, best first; each runs through some tokens."""
    frame = pl.DataFrame(edges, schema=ID, orient="row").with_columns(
        pl.Series("score", np.arange(len(edges), 0, -1, dtype=np.float64)),
        n_pairs=pl.lit(9),
    )
    labels = pl.DataFrame({"token_id": pl.Series(range(n_tokens), dtype=pl.UInt32)})
    tokens = (
        frame.select("source", "target")
        .join(labels, how="cross")
        .with_columns(
            pl.concat_str(pl.lit("t"), "token_id").alias("token_str"), share=pl.lit(1 / n_tokens)
        )
    )
    nodes = pl.DataFrame({"feature_idx": pl.Series(range(n), dtype=pl.UInt32)})
    return FeatureGraph(nodes, frame, tokens)


def random_edges(seed: int, n: int) -> list[tuple[int, int]]:
    """Give edges among n - 3 features in two parts, loops included; three features stay alone."""
    rng = np.random.default_rng(seed)
    half = (n - 3) // 2
    parts = [rng.integers(0, half, (3 * half, 2)), half + rng.integers(0, half, (3 * half, 2))]
    loops = [(i, i) for i in rng.choice(2 * half, 3, replace=False).tolist()]
    pairs = {(int(i), int(j)) for i, j in np.concatenate(parts)} | set(loops)
    return [sorted(pairs)[k] for k in rng.permutation(len(pairs))]


@pytest.mark.parametrize("seed", range(4))
def test_g3_walks_through_cycles_and_separate_parts_are_those_of_networkx(seed: int) -> None:
    n = 13
    edges = random_edges(seed, n)
    graph, twin = graph_of(edges, n), nx.DiGraph(edges)
    twin.add_nodes_from(range(n))
    assert not nx.is_directed_acyclic_graph(twin)
    assert nx.number_weakly_connected_components(twin) >= 5
    for i in range(n):
        assert graph.successors(i)["target"].to_list() == [b for a, b in edges if a == i]
        assert graph.predecessors(i)["source"].to_list() == [a for a, b in edges if b == i]
    for i in range(n):
        for j in range(n):
            found = graph.paths(i, j, max_length=4, limit=10**6)
            assert [len(path) for path in found] == sorted(map(len, found))
            assert set(found) == simple_paths(twin, i, j, 4)
    native = graph.to_networkx()
    assert nx.utils.graphs_equal(nx.DiGraph(native.edges), nx.DiGraph(edges))
    assert set(native) == set(range(n))
    assert all(data["tokens"] == ["t0", "t1", "t2"] for _, _, data in native.edges(data=True))
    assert (graph.adjacency("n_pairs").toarray() > 0).tolist() == (
        nx.to_numpy_array(twin, nodelist=range(n)) > 0
    ).tolist()


def simple_paths(twin: nx.DiGraph, i: int, j: int, most: int) -> set[tuple[int, ...]]:
    if i != j:
        return set(map(tuple, nx.all_simple_paths(twin, i, j, cutoff=most)))
    cycles = nx.simple_cycles(twin, length_bound=most)
    turned = ([*cycle[k:], *cycle[:k]] for cycle in cycles for k in range(len(cycle)))
    return {(*cycle, i) for cycle in turned if cycle[0] == i}


@pytest.mark.parametrize("seed", range(4))
def test_g3_motifs_are_those_of_their_definitions(seed: int) -> None:
    edges = random_edges(seed, 17)
    graph, known = graph_of(edges, 17), set(edges)
    loops = find_motifs(graph, "loop")["features"].to_list()
    assert sorted(loops) == [[i] for i, j in sorted(known) if i == j]
    pairs = find_motifs(graph, "pair")["features"].to_list()
    assert sorted(pairs) == [[i, j] for i, j in sorted(known) if i < j and (j, i) in known]
    best = [edge for edge in edges if edge[0] != edge[1]]
    after = {i: next(b for a, b in best if a == i) for i, _ in best}
    before = {j: next(a for a, b in best if b == j) for _, j in best}
    for chain in find_motifs(graph, "chain")["features"].to_list():
        assert len(set(chain)) == len(chain) >= 3
        assert all(after[a] == b and before[b] == a for a, b in pairwise(chain))
    ring = graph_of([(0, 1), (1, 2), (2, 0)], 3)
    assert find_motifs(ring, "chain").is_empty()  # it has no first feature


def test_g3_parallel_labels_stay_with_their_edge_in_a_subgraph() -> None:
    graph = graph_of([(0, 1), (1, 0), (1, 1), (2, 2), (1, 3)], 6, n_tokens=9)
    part = graph.subgraph([1, 0, 0, 5])
    assert part.edges.select("source", "target").rows() == [(0, 1), (1, 0), (1, 1)]
    assert part.edge_tokens.group_by("source", "target").len()["len"].to_list() == [9, 9, 9]
    assert part.tokens(1, 1)["token_str"].to_list() == [f"t{k}" for k in range(9)]
    assert part.with_token("t8").select("source", "target").rows() == [(0, 1), (1, 0), (1, 1)]
    assert part.paths(0, 0) == [(0, 1, 0)]
    assert part.subgraph([5]).edges.is_empty()


# The row G4, unknown features from Python; the commands' are in test_faults_cli.py


@pytest.mark.parametrize("feature", [-1, 3, 10**30, 1.0, "1", None, math.nan, np.float32(1), [0]])
def test_g4_what_is_no_feature_is_a_value_error_with_the_range(feature: Any) -> None:
    graph = graph_of([(0, 1), (1, 2)], 3)
    for ask in (
        graph.successors,
        graph.predecessors,
        lambda one: graph.tokens(0, one),
        lambda one: graph.paths(one, 0),
        lambda one: graph.subgraph([0, one]),
    ):
        with pytest.raises(ValueError, match=r"features are 0\.\.2"):
            ask(feature)
    assert graph.successors(np.uint32(0)).height == 1


# The row G8, ties and the order of rows


def test_g8_the_order_of_rows_in_tables_written_by_hand_changes_no_edge(tmp_path: Path) -> None:
    hidden = planted.planted_world(tmp_path / "run", n_tokens=8000)
    circuits.build_graph(hidden.path)
    effects = pl.DataFrame(
        {
            "feature_idx": np.repeat(np.arange(20), 5),
            "token_id": np.tile(np.arange(5), 20),
            "token_str": [""] * 100,
            "nats_per_unit": np.random.default_rng(0).normal(size=100),
        }
    )
    effects.write_parquet(hidden.path / "logit_effects.parquet")
    found = []
    for seed in (None, 1, 2):
        names = ["vocabulary", "documents", "logit_effects"]
        names += ["statistics/transitions", "statistics/coactivation"]
        for name in names if seed else ():
            path = hidden.path / f"{name}.parquet"
            pl.read_parquet(path).sample(fraction=1, shuffle=True, seed=seed).write_parquet(path)
        circuits.build_graph(hidden.path)
        found.append(shell.digests(hidden.path / "graph"))
    assert found[0] == found[1] == found[2]
    assert circuits.open_run(hidden.path).graph.edges["predicted"].null_count() == 0


def test_g8_features_that_are_equal_in_everything_come_by_their_number(tmp_path: Path) -> None:
    rows = [[0, 3], [1, 4], [2, 5], [], []] * 80
    run = run_of(tmp_path / "run", rows, 6)
    graph = circuits.build_graph(run)
    scores = graph.edges.select("score", "source", "target").rows()
    assert scores == sorted(scores, key=lambda row: (-row[0], row[1], row[2]))
    assert len({score for score, *_ in scores}) < len(scores)
    shuffled = FeatureGraph(
        graph.nodes, graph.edges.sample(fraction=1, shuffle=True, seed=3), graph.edge_tokens
    )
    for motif in ("loop", "pair", "chain"):
        assert find_motifs(shuffled, motif).equals(find_motifs(graph, motif))


# The row G9, almost nothing to count


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 60),
    d_sae=st.integers(1, 5),
    floors=st.tuples(st.integers(1, 5), st.integers(0, 10)),
    held=st.booleans(),
)
def test_g9_no_number_of_a_small_table_is_nan_or_infinite(
    seed: int, n: int, d_sae: int, floors: tuple[int, int], *, held: bool
) -> None:
    tokens = naive.random_tokens(seed, n=n, d_sae=d_sae, n_docs=max(1, n // 9))
    if held:
        tokens = tokens._replace(promotions=np.zeros_like(tokens.promotions))
    sums = collect(tokens, d_sae + 1, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "MIN_PAIRS", floors[0])
        patch.setattr(evidence, "MIN_FIRES", floors[1])
        pairs = pair_table(sums)
        tables = build_edges(sums, WORDS)
    for frame in (pairs, tables.edges, tables.edge_tokens, tables.coactivation.collect()):
        for column in frame.select(pl.col(pl.Float64)).iter_columns():
            assert column.drop_nulls().is_finite().all(), (column.name, frame)
    assert pairs["q_value"].is_between(0, 1).all()
    assert (tables.reason == "") == (len(tables.edges) > 0)


@pytest.mark.parametrize("rows", [[[0]] * 3, [[0], [1]] * 2, [[0], [0]], [[0, 1]] * 3])
def test_g9_a_handful_of_firings_is_never_an_edge(
    rows: list[list[int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(evidence, "MIN_PAIRS", 1)
    monkeypatch.setattr(evidence, "MIN_FIRES", 1)
    run = run_of(tmp_path / "run", [*rows, []], 2)
    table = pair_table(circuits.open_run(run).statistics)
    assert len(table)
    assert (table["q_value"] > 0.05).all()


def test_g9_under_the_null_one_world_in_twenty_has_an_edge_at_most() -> None:
    n_worlds = n_with_edge = 40
    rng = np.random.default_rng(3)
    for _ in range(n_worlds):
        tokens = naive.random_tokens(int(rng.integers(10**9)), n=1500, d_sae=8, n_docs=6)
        n_with_edge -= build_edges(collect(tokens, 8, 5), WORDS).edges.is_empty()
    assert n_with_edge <= 0.05 * n_worlds + 3  # one standard deviation is 1.4 worlds
