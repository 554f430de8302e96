"""Edges: planted ones come first, topics give none, numbers are what their formulas say."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import naive
import numpy as np
import planted
import polars as pl
import pytest
import shell
from scipy import stats

from circuits import build
from circuits.edge_tables import EDGE_SCHEMA, build_edges
from circuits.evidence import MIN_PAIRS, pair_table
from circuits.given import given_by
from circuits.predicted import COLUMNS, predicted_effects
from sae_core.errors import StoreError
from sae_core.gather_memory import Room
from sae_core.run_writer import vocabulary_frame
from sae_core.schema import TokenTable
from sae_core.statistics import Statistics, collect, merge, save
from sae_core.store import read_manifest, read_tokens, read_vocabulary

if TYPE_CHECKING:
    from pathlib import Path


def sums_of(path: Path, *, permute: int | None = None) -> Statistics:
    manifest, tokens = read_manifest(path), read_tokens(path, held_out=False)
    if permute is not None:
        tokens = naive.permuted_within_documents(tokens, np.random.default_rng(permute))
    return collect(tokens, manifest.d_sae, manifest.d_vocab)


def stream(rows: list[list[int]], *, nats: float = 1.0, window: int = 10**6) -> TokenTable:
    """Make one document of tokens with the given features; token id = number of features."""
    n = len(rows)
    at = np.arange(n)
    features = np.array([i for row in rows for i in row], np.uint32)
    return TokenTable(
        np.zeros(n, np.uint32),
        (at // window).astype(np.uint32),
        at.astype(np.uint32),
        np.array([len(row) for row in rows], np.uint32),
        at,
        at + 1,
        np.cumsum([0, *(len(row) for row in rows)]),
        features,
        np.ones(len(features), np.float32),
        np.full(len(features), nats, np.float32),
    )


WORDS = vocabulary_frame([b"a", b"b", b"c", b"d"])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "world", [{}, {"n_copies": 3, "n_tokens": 80_000, "n_noise": 80}, {"nats_noise": 0.4}]
)
def test_planted_edges_come_first(tmp_path: Path, seed: int, world: dict[str, float]) -> None:
    hidden = planted.planted_world(tmp_path / "run", seed=seed, **world)  # type: ignore[arg-type]
    edges = build_edges(sums_of(hidden.path), read_vocabulary(hidden.path)).edges
    ranked = hidden.judged(edges)
    assert planted.average_precision(ranked, hidden.truth_edges) >= 0.99
    by_g2 = hidden.judged(edges.sort("g2", "source", "target", descending=[True, False, False]))
    assert planted.average_precision(by_g2, hidden.truth_edges) < 0.95


@pytest.mark.parametrize("seed", [0, 1])
def test_topics_alone_give_no_edge(tmp_path: Path, seed: int) -> None:
    hidden = planted.planted_world(tmp_path / "run", seed=seed, n_noise=60)
    shuffled = sums_of(hidden.path, permute=seed)
    pairs = pair_table(shuffled)
    assert len(pairs) > 500
    assert (pairs["p_value"] < 0.05).mean() <= 0.06  # type: ignore[operator]
    tables = build_edges(shuffled, read_vocabulary(hidden.path))
    assert tables.edges.is_empty()
    assert "no pair of features is significant at q < 0.05; the nearest" in tables.reason


def test_independent_features_give_no_edge() -> None:
    rng = np.random.default_rng(0)
    n_called = 0
    for _ in range(20):
        fires = rng.random((3000, 12)) < rng.uniform(0.01, 0.3, 12)
        rows = [np.flatnonzero(row).tolist() for row in fires]
        n_called += len(build_edges(collect(stream(rows), 12, 13), WORDS).edges)
    assert n_called <= 2


def test_numbers_of_an_edge_are_those_of_their_definitions() -> None:
    rows = [[0], [1], [], [2], [0], [1], [], [], [0], [2], [], [], []] * 12
    sums = collect(stream(rows, window=200), 3, 4)
    row = pair_table(sums).row(
        by_predicate=(pl.col("source") == 0) & (pl.col("target") == 1), named=True
    )
    assert (row["n_pairs"], sums.n_source[0], sums.n_target[1], sums.n_pairs) == (24, 36, 24, 155)
    assert row["p_target_given_source"] == pytest.approx(24 / 36)
    assert row["lift"] == pytest.approx(24 * 155 / (36 * 24))
    table = [[24, 12], [0, 119]]
    expected = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
    assert row["g2"] == pytest.approx(expected)
    assert row["promoted_nats"] == pytest.approx(1.0)
    assert row["p_target_given_promoted"] == pytest.approx(24 / 36)
    lagged = sums.transitions.filter(source=0, target=1)["n_lagged"].item()
    ratio = (24.5 / 156) / ((lagged + 0.5) / (sums.n_lag_pairs + 1))
    assert row["burst_ratio"] == pytest.approx(ratio)


def test_an_edge_without_promotion_scores_nothing_and_the_promoted_one_does() -> None:
    rows = [[0], [1], [], [2], [3], [], [], []] * 60
    tokens = stream(rows)
    nats = np.where(tokens.features == 2, np.float32(0.05), np.float32(1.0))
    edges = build_edges(collect(tokens._replace(promotions=nats), 4, 4), WORDS).edges
    scores = {(i, j): score for i, j, score in edges.select("source", "target", "score").rows()}
    assert scores[0, 1] > 0.5
    assert scores[2, 3] == 0


def test_a_run_without_promotions_is_ranked_by_what_was_observed() -> None:
    rows = [[0], [1], [], [], [2], [], [3], [], []] * 60
    edges = build_edges(collect(stream(rows, nats=0.0), 4, 4), WORDS).edges
    assert edges["score"][0] > 0.5
    assert edges["n_promoted"].sum() == 0
    assert edges["promoted_nats"].to_list() == [0.0] * len(edges)


def test_a_loop_that_fills_whole_windows_is_still_an_edge() -> None:
    rng = np.random.default_rng(0)
    rows: list[list[int]] = []
    while len(rows) < 40_000:
        rows += [[0] if rng.random() < 0.97 else [] for _ in range(int(rng.integers(1500, 2500)))]
        rows += [[] if rng.random() < 0.99 else [0] for _ in range(2000)]
    tokens = stream(rows, window=512)
    inside = np.array([len(row) for row in rows])[1:]
    promoted = np.append(inside, 0)[np.repeat(np.arange(len(rows)), np.diff(tokens.indptr))]
    edges = build_edges(
        collect(tokens._replace(promotions=promoted.astype(np.float32)), 1, 4), WORDS
    ).edges
    assert edges.select("source", "target").rows() == [(0, 0)]
    assert edges["burst_ratio"][0] < 1.05
    assert edges["score"][0] > 0.3


def test_shares_of_the_tokens_of_an_edge_add_up_to_one(tmp_path: Path) -> None:
    hidden = planted.planted_world(tmp_path / "run", seed=0, n_tokens=20_000)
    tables = build_edges(sums_of(hidden.path), read_vocabulary(hidden.path))
    grouped = tables.edge_tokens.group_by("source", "target", maintain_order=True)
    sums = grouped.agg(pl.col("share", "n_pairs", "n_promoted").sum())
    for column in ("source", "target", "n_pairs", "n_promoted"):
        assert sums[column].to_list() == tables.edges[column].to_list()
    np.testing.assert_allclose(sums["share"], 1)
    shares = grouped.agg("share")["share"].to_list()
    assert all(row == sorted(row, reverse=True) for row in shares)


def test_coactivation_is_counted_on_the_same_token() -> None:
    rows = [[0, 1], [0], [1, 2], [0, 1]] * 5
    table = build_edges(collect(stream(rows), 3, 4), WORDS).coactivation.collect()
    first = table.row(0, named=True)
    assert (first["feature_a"], first["feature_b"], first["n_both"]) == (0, 1, 10)
    assert first["lift"] == pytest.approx(10 * 20 / (15 * 15))
    assert first["jaccard"] == pytest.approx(10 / 20)


def test_no_table_holds_a_nan_and_columns_are_as_promised(tmp_path: Path) -> None:
    hidden = planted.planted_world(tmp_path / "run", seed=1, n_tokens=8_000)
    tables = build_edges(sums_of(hidden.path), read_vocabulary(hidden.path))
    assert tables.edges.schema == pl.Schema(EDGE_SCHEMA)
    for frame in (tables.edges, tables.edge_tokens, tables.coactivation.collect()):
        floats = frame.select(pl.col(pl.Float64).drop_nulls().is_finite().all())
        assert all(floats.row(0))
    assert tables.edges["q_value"].is_between(0, 0.05).all()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "no token was counted"),
        ([[0]], "no token has a successor"),
        (
            [[0], [1], [], []] * 3,
            rf"follow each other {MIN_PAIRS} times \(the most frequent pair: 3",
        ),
    ],
)
def test_too_little_text_gives_no_edge_and_says_why(rows: list[list[int]], sentence: str) -> None:
    tables = build_edges(collect(stream(rows), 2, 4), WORDS)
    assert tables.edges.is_empty()
    assert tables.edges.schema == pl.Schema(EDGE_SCHEMA)
    assert tables.edge_tokens.is_empty()
    import re  # noqa: PLC0415 - one use

    assert re.search(sentence, tables.reason)


def test_a_feature_that_is_always_on_divides_nothing_by_zero() -> None:
    rng = np.random.default_rng(0)
    rows = [[0, 1] if rng.random() < 0.2 else [0] for _ in range(500)]
    pairs = pair_table(collect(stream(rows), 2, 4))
    assert pairs.select(pl.col(pl.Float64).is_finite().all()).row(0) == (True,) * 9
    assert (pairs["q_value"] >= 0.05).all()


def test_duplicated_features_tie_and_are_ordered_by_index() -> None:
    rows = [[0, 2], [1, 3], [], [], [], []] * 50
    edges = build_edges(collect(stream(rows), 4, 4), WORDS).edges
    assert edges.select("source", "target").rows() == [(0, 1), (0, 3), (2, 1), (2, 3)]
    assert edges["score"].n_unique() == 1


def test_the_order_of_the_shards_does_not_change_a_byte(tmp_path: Path) -> None:
    hidden = planted.planted_world(tmp_path / "run", seed=2, n_tokens=10_000)
    tokens, words = read_tokens(hidden.path), read_vocabulary(hidden.path)
    manifest = read_manifest(hidden.path)
    bounds = [0, *naive.cuts(tokens), len(tokens.doc_ids)]
    parts = [
        collect(naive.part(tokens, a, b), manifest.d_sae, manifest.d_vocab)
        for a, b in pairwise(bounds)
    ]
    one = build_edges(merge(parts), words)
    two = build_edges(merge(parts[::-1]), words)
    for name in ("edges", "edge_tokens", "coactivation"):
        first, second = (getattr(tables, name).lazy().collect() for tables in (one, two))
        assert first.equals(second), name


class TightRoom(Room):
    """Room in which a handful of features is counted at once."""

    is_told = True

    def n_at_once(self, n_entries: int) -> int:
        return n_entries // 7

    def n_rows(self) -> int:
        return 100


def test_a_graph_is_that_of_all_sums_held_at_once_however_little_memory_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = planted.planted_world(tmp_path / "run", seed=3, n_tokens=20_000).path
    sums, words = sums_of(hidden), read_vocabulary(hidden)
    save(sums, tmp_path / "whole")
    given = given_by(lambda: [read_tokens(hidden, held_out=False)], sums)
    tables = build_edges(sums, words, given=given)
    assert len(tables.edges) > 20
    monkeypatch.setattr(build, "room_here", TightRoom)
    build.build_graph(hidden)
    assert shell.digests(hidden / "statistics") == shell.digests(tmp_path / "whole")
    for name in build.GRAPH_TABLES:
        found = pl.read_parquet(hidden / "graph" / f"{name}.parquet")
        assert found.equals(getattr(tables, name).lazy().collect()), name


def test_the_predicted_effect_is_that_of_its_formula() -> None:
    rng = np.random.default_rng(0)
    tokens = naive.random_tokens(0, n=400)
    sums = collect(tokens, 7, 5)
    effects = pl.DataFrame(
        {
            "feature_idx": np.repeat(np.arange(7), 5),
            "token_id": np.tile(np.arange(5), 7),
            "nats_per_unit": rng.normal(0, 1, 35),
        }
    )
    edges = pair_table(sums).select("source", "target")
    found = predicted_effects(edges, sums, effects, None)["predicted"]
    matrix = effects["nats_per_unit"].to_numpy().reshape(7, 5)
    unigram = sums.token_counts / sums.n_tokens
    fires = np.zeros((7, 5))
    for feature, token, count in sums.token_features.rows():
        fires[feature, token] = count / sums.token_counts[token]
    for (i, j), value in zip(edges.rows(), found.to_list(), strict=True):
        up = sums.promoted_tokens.filter(pl.col("feature_idx") == i)
        rows = [row for row in up.rows(named=True) if matrix[i, row["token_id"]] > 0]
        units = sum(row["n_promoted"] * matrix[i, row["token_id"]] for row in rows)
        strength = sum(row["nats"] for row in rows) / 2**20 / units
        changed = unigram * np.exp(strength * matrix[i])
        expected = ((changed / changed.sum() - unigram) * fires[j]).sum()
        assert value == pytest.approx(expected, abs=1e-12)


def drawn_tokens(seed: int) -> TokenTable:
    """Draw 600 tokens of 5 kinds with two of 6 features on each."""
    rng = np.random.default_rng(seed)
    rows = [sorted(rng.choice(6, 2, replace=False).tolist()) for _ in range(600)]
    return stream(rows)._replace(
        token_ids=rng.integers(0, 5, 600).astype(np.uint32),
        promotions=rng.normal(0.1, 0.4, 1200).astype(np.float32),
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_effect_in_context_is_that_of_its_formula(seed: int) -> None:
    tokens = drawn_tokens(seed)
    sums = collect(tokens, 6, 5)
    edges = pair_table(sums).select("source", "target")
    given = given_by(lambda: [tokens], sums)
    found = predicted_effects(edges, sums, None, given)["predicted_in_context"]
    fires, nats = np.zeros((600, 6), np.bool_), np.zeros((600, 6))
    fires[np.repeat(np.arange(600), 2), tokens.features] = True
    nats[np.repeat(np.arange(600), 2), tokens.features] = tokens.promotions
    following = tokens.token_ids[1:]
    for (i, j), value in zip(edges.rows(), found.to_list(), strict=True):
        mine = np.flatnonzero(fires[:-1, i])
        left, on, came = np.exp(-nats[mine, i]), tokens.token_ids[mine], following[mine]
        norm = np.array(
            [(left[on == c].sum() + 5 * left.mean()) / ((on == c).sum() + 5) for c in on]
        )
        share = 1 - left / norm
        mean = np.array([share[came == v].mean() for v in came])
        assert value == pytest.approx((mean * fires[mine + 1, j]).mean(), abs=1e-5)
    assert np.abs(found.to_numpy()).max() > 1e-3


def test_what_is_given_does_not_depend_on_how_the_tokens_are_cut() -> None:
    tokens = drawn_tokens(0)._replace(doc_ids=np.repeat([0, 1, 2], 200).astype(np.uint32))
    sums = collect(tokens, 6, 5)
    parts = [naive.part(tokens, start, start + 200) for start in (400, 0, 200)]
    whole = given_by(lambda: [tokens], sums)
    assert given_by(lambda: parts, sums).equals(whole)
    assert not whole.is_empty()


def test_effects_are_null_where_nothing_tells_them() -> None:
    sums = collect(drawn_tokens(0), 6, 5)
    unknown = predicted_effects(pair_table(sums).select("source", "target"), sums, None, None)
    assert [unknown[name].null_count() for name in COLUMNS] == [len(unknown)] * 2


def test_a_token_that_is_certain_for_other_reasons_is_given_nothing() -> None:
    """Feature 0 gives 3 nats, but after token 0 there is no other token than 1."""
    rows = [[0], [1]] * 40
    tokens = stream(rows, nats=3.0)._replace(token_ids=np.tile([0, 1], 40).astype(np.uint32))
    given = given_by(lambda: [tokens], collect(tokens, 2, 2))
    assert given.filter(pl.col("source") == 0)["given"].to_list() == pytest.approx([0], abs=1e-6)


def test_tokens_of_more_features_than_the_sums_are_refused() -> None:
    tokens = drawn_tokens(0)
    sums = collect(naive.part(tokens, 0, 0), 3, 5)
    with pytest.raises(StoreError, match="the feature 5, the sums are of 3 features"):
        given_by(lambda: [tokens], sums)
