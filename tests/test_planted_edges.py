"""Hard planted worlds: what they hold, that true edges come first, and that nulls give none."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import edge_scores
import naive
import numpy as np
import planted_bursts
import polars as pl
import pytest
from planted_machines import tokens_into, wide_machines_of
from planted_rich import rich_world, silences

from circuits.evidence import pair_table
from sae_core.statistics import collect
from sae_core.store import read_documents, read_manifest, read_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from planted import PlantedWorld

    from sae_core.schema import TokenTable
    from sae_core.statistics import Statistics


class Measured(NamedTuple):
    """A world, what was counted in it and all its pairs."""

    world: PlantedWorld
    tokens: TokenTable
    sums: Statistics
    pairs: pl.DataFrame


MISSES = (0.05, 0.25)


@pytest.fixture(scope="module", params=MISSES)
def hard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("rich")
    world = rich_world(folder / "run", seed=100, miss=(request.param, request.param))
    tokens = edge_scores.counted_tokens(world.path)
    sums = edge_scores.sums_of(world.path, tokens)
    return Measured(world, tokens, sums, edge_scores.measured(sums))


def test_the_same_seed_writes_the_same_world(tmp_path: Path) -> None:
    worlds = [rich_world(tmp_path / name, seed=3, n_tokens=6_000) for name in ("one", "two")]
    assert worlds[0].truth_edges == worlds[1].truth_edges
    one, two = (read_tokens(world.path) for world in worlds)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_machines_are_of_all_kinds_and_sizes_and_share_tokens() -> None:
    machines = wide_machines_of(20, np.random.default_rng(0))
    sizes = {
        kind: {len(m.states) for m in machines if m.kind == kind} for kind in ("system", "chain")
    }
    assert sizes == {"system": {4, 5, 6}, "chain": {5, 6, 7, 8}}
    for machine in machines:
        for arcs in (machine.entry, *machine.states):
            assert sum(arc.probability for arc in arcs) == pytest.approx(1)
            assert all(arc.probability > 0 for arc in arcs)
    owned = [{t for s in range(len(m.states)) for t in tokens_into(m, s)} for m in machines]
    assert any(a & b for k, a in enumerate(owned) for b in owned[:k])


@pytest.mark.parametrize("share", MISSES)
def test_misses_come_in_stretches_and_have_their_share(share: float) -> None:
    silent = silences(400_000, share, np.random.default_rng(0))
    assert silent.mean() == pytest.approx(share, rel=0.1)
    n_stretches = (np.diff(silent.astype(int)) == 1).sum()
    assert silent.sum() / n_stretches == pytest.approx(20, rel=0.1)


def test_a_state_is_split_over_at_most_three_features(hard: Measured) -> None:
    sizes = [len(features) for of in hard.world.states for features in of]
    assert set(sizes) == {1, 2, 3}
    every = [i for of in hard.world.states for features in of for i in features]
    assert len(every) == len(set(every))
    assert read_manifest(hard.world.path).d_sae == len(hard.sums.n_fires)
    assert 0 < read_documents(hard.world.path)["held_out"].mean() < 0.5  # type: ignore[operator]


def test_planted_edges_of_a_hard_world_come_first(hard: Measured) -> None:
    assert len(hard.world.truth_edges) > 50
    found = {
        name: edge_scores.precision_by(hard.world, hard.pairs, name)
        for name in edge_scores.MEASURES
    }
    assert found["score"] >= 0.99
    assert found["n_pairs"] < 0.4
    assert max(found["lift"], found["g2"], found["s"], found["g"]) < found["score"] - 0.02


def test_few_called_edges_are_false(hard: Measured) -> None:
    calls = edge_scores.calls_of(hard.world, hard.pairs)
    assert calls.n_called > 50
    assert calls.n_false <= 0.06 * calls.n_called
    assert calls.recall > 0.7


@pytest.mark.parametrize("seed", [0, 1])
def test_permuted_rows_of_a_hard_world_give_no_edge(hard: Measured, seed: int) -> None:
    shuffled = naive.permuted_within_documents(hard.tokens, np.random.default_rng(seed))
    pairs = pair_table(edge_scores.sums_of(hard.world.path, shuffled))
    assert len(pairs) > 1000
    assert (pairs["p_value"] < 0.05).mean() <= 0.06  # type: ignore[operator]
    assert len(edge_scores.called(pairs)) <= 1


@pytest.mark.parametrize("burst", [20, 100, 400])
@pytest.mark.parametrize("n_tokens", [30_000, 120_000])
def test_unrelated_features_of_one_bursty_topic_are_no_edge(burst: int, n_tokens: int) -> None:
    rng = np.random.default_rng(burst)
    tokens = planted_bursts.bursty_tokens(n_tokens, burst, rng)
    pairs = pair_table(collect(tokens, planted_bursts.N_FEATURES, 1))
    pairs = pairs.filter(pl.col("source") != pl.col("target"))
    assert pairs["lift"].min() > 1.5  # type: ignore[operator]
    by_chance = pairs.filter(pl.col("g2") > 30)
    assert len(by_chance) > 20
    assert len(edge_scores.called(pairs)) <= 1


def test_drawing_documents_anew_agrees_with_the_q_values(hard: Measured) -> None:
    found = edge_scores.agreement(hard.tokens, hard.sums, np.random.default_rng(0), n_draws=100)
    assert found.same >= 0.98
    assert found.kappa >= 0.85


def test_permuted_promotions_take_the_promoted_evidence_away(hard: Measured) -> None:
    rng, edges = np.random.default_rng(0), hard.world.truth_edges
    assert edge_scores.share_beyond(hard.tokens, hard.sums, edges, rng) > 0.95
    shuffled = edge_scores.promotions_permuted(hard.tokens, rng)
    sums = edge_scores.sums_of(hard.world.path, shuffled)
    assert edge_scores.share_beyond(shuffled, sums, edges, rng) <= 0.15  # 0.05 by chance
    s_alone = edge_scores.precision_by(hard.world, hard.pairs, "s")
    assert (
        edge_scores.precision_by(hard.world, edge_scores.measured(sums), "score") < s_alone + 0.02
    )


def test_promotions_stay_on_their_token_when_they_change_places() -> None:
    tokens = naive.random_tokens(0)
    moved = edge_scores.promotions_permuted(tokens, np.random.default_rng(0))
    assert not np.array_equal(moved.promotions, tokens.promotions)
    for p in range(len(tokens.doc_ids)):
        entries = slice(int(tokens.indptr[p]), int(tokens.indptr[p + 1]))
        assert sorted(moved.promotions[entries]) == sorted(tokens.promotions[entries])
