"""How well edges are ranked and tested, on worlds whose edges are known.

1. Rankings: the score beside its two parts and beside counts, lift and G2, over all pairs seen often
   enough; average precision against the planted steps.
2. Calls: the edges at q < MAX_Q; which are true, and how many of the true ones are among them.
3. Agreement: the same pairs tested anew by drawing whole documents with replacement, which assumes
   nothing about how tokens of one document depend on each other.
4. A null for the weights: promotions change places among the features active on one token.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import naive
import numpy as np
import polars as pl
from planted import average_precision
from scipy import special

from circuits import evidence
from circuits.edge_tables import IS_EDGE
from circuits.evidence import MAX_Q, MIN_FIRES, pair_table
from sae_core.statistics import Statistics, collect
from sae_core.store import read_manifest, read_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from planted import PlantedWorld

    from sae_core.schema import TokenTable

MEASURES = {
    "score": "score",
    "n_pairs": "count",
    "lift": "lift",
    "g2": "G2",
    "s": "s alone",
    "g": "g alone",
}  # column of `measured`: heading


class Calls(NamedTuple):
    """What was called an edge in a world."""

    n_called: int
    """Called, and judged: the world knows whether they are edges."""

    n_false: int
    """Of these, pairs that do not follow each other beyond chance and topic."""

    recall: float
    """Share of the true edges that were called."""


class Agreement(NamedTuple):
    """Two tests of the same pairs at q < MAX_Q."""

    same: float
    """Share of pairs with the same verdict."""

    kappa: float
    """Cohen's kappa of the verdicts: 1 is full agreement, 0 is that of chance."""

    null_share: float
    """Share of pairs whose p-value by documents is below 0.05."""


def counted_tokens(path: Path) -> TokenTable:
    """Give the tokens of a run that are not held out."""
    return read_tokens(path, held_out=False)


def sums_of(path: Path, tokens: TokenTable | None = None) -> Statistics:
    """Count a run's tokens, or others of the same features and vocabulary."""
    manifest = read_manifest(path)
    rows = counted_tokens(path) if tokens is None else tokens
    return collect(rows, manifest.d_sae, manifest.d_vocab)


def measured(statistics: Statistics) -> pl.DataFrame:
    """Give `pair_table` and the score's two parts: s (nats a firing) and g (nats a pair)."""
    pairs = pair_table(statistics)
    counts = _counts(pairs, statistics)
    s = evidence._score(replace(counts, has_promotions=False))
    g = pl.col("promoted_nats") * pl.col("n_promoted") / pl.col("n_pairs")
    return pairs.with_columns(g.alias("g"), pl.Series("s", s))


def precision_by(world: PlantedWorld, pairs: pl.DataFrame, measure: str) -> float:
    """Give the average precision of all judged pairs, ranked by a measure, ties by index."""
    ranked = pairs.sort(measure, "source", "target", descending=[True, False, False])
    return average_precision(world.judged(ranked), world.truth_edges)


def without_onlookers(world: PlantedWorld) -> PlantedWorld:
    """Give the world with edges that are observed and not promoted counting neither way."""
    return replace(world, rare_edges=world.rare_edges | world.unpromoted_edges)


def called(pairs: pl.DataFrame) -> pl.DataFrame:
    """Give the pairs that `build_edges` keeps."""
    return pairs.filter(IS_EDGE)


def calls_of(world: PlantedWorld, pairs: pl.DataFrame) -> Calls:
    """Compare the called pairs with the planted ones."""
    judged = world.judged(called(pairs))
    followed = world.truth_edges | world.unpromoted_edges
    n_true = len(world.truth_edges.intersection(judged))
    n_false = sum(edge not in followed for edge in judged)
    return Calls(len(judged), n_false, n_true / len(world.truth_edges))


def agreement(
    tokens: TokenTable, statistics: Statistics, rng: np.random.Generator, *, n_draws: int = 300
) -> Agreement:
    """Test all pairs by drawing documents with replacement, and compare the verdicts.

    Each null of `circuits.evidence` is one ratio that must be above 1: lift, rate at lag 1 over the
    lagged rate, over the rate on the same token, share after promotion over share after none. The
    logarithm of each over its standard deviation among the draws is taken as normal.

    Args:
        tokens: the stream that was counted.
        statistics: its sums.
        rng: source of chance.
        n_draws: draws of as many documents as there are.
    """
    pairs = pair_table(statistics)
    counts = _counts(pairs, statistics)
    logs = _log_ratios(_by_document(tokens, statistics, pairs), rng, n_draws)
    lift, lagged, same_token, promotion = (special.ndtr(-column) for column in logs)
    same_token = np.where(counts.same_role, 0.0, same_token)
    either = np.minimum(2 * np.minimum(same_token, promotion), 1)
    explained = evidence._is_explained(counts)
    p_value = np.maximum(lift, np.where(explained, promotion, np.maximum(lagged, either)))
    fires = np.minimum(statistics.n_source, statistics.n_target)
    q_value = evidence._benjamini_hochberg(p_value, int((fires >= MIN_FIRES).sum()) ** 2)
    above = counts.lift > 1
    ours, theirs = (pairs["q_value"].to_numpy() < MAX_Q) & above, (q_value < MAX_Q) & above
    same = float((ours == theirs).mean())
    chance = ours.mean() * theirs.mean() + (1 - ours.mean()) * (1 - theirs.mean())
    kappa = float((same - chance) / (1 - chance)) if chance < 1 else 1.0
    return Agreement(same, kappa, float((p_value < 0.05).mean()))


def promotions_permuted(tokens: TokenTable, rng: np.random.Generator) -> TokenTable:
    """Shuffle the promotions among the features that are active on the same token."""
    rows = np.repeat(np.arange(len(tokens.doc_ids)), np.diff(tokens.indptr))
    order = np.lexsort((rng.random(len(rows)), rows))
    return tokens._replace(promotions=tokens.promotions[order])


def share_beyond(
    tokens: TokenTable,
    statistics: Statistics,
    edges: frozenset[tuple[int, int]],
    rng: np.random.Generator,
    *,
    n_draws: int = 19,
) -> float:
    """Give the share of some edges whose promoted nats are above those of every permuted draw.

    By chance alone it is 1 / (1 + n_draws).

    Args:
        tokens: the stream that was counted.
        statistics: its sums.
        edges: (source, target) of each.
        rng: source of chance.
        n_draws: permutations of the promotions.
    """
    found = _nats(statistics, edges)
    beaten = np.ones(len(found), dtype=bool)
    for _ in range(n_draws):
        drawn = collect(promotions_permuted(tokens, rng), statistics.d_sae, statistics.d_vocab)
        beaten &= _nats(drawn, edges) < found
    return float(beaten.mean())


def _nats(statistics: Statistics, edges: frozenset[tuple[int, int]]) -> NDArray[np.int64]:
    """(len(edges),) nats of each edge, in fixed point, in ascending order of the edges."""
    kinds = {"source": pl.UInt32, "target": pl.UInt32}
    rows = pl.DataFrame(sorted(edges), schema=kinds, orient="row")
    return _transitions(rows, statistics)["nats"].to_numpy()


def _counts(pairs: pl.DataFrame, statistics: Statistics) -> evidence._Counts:
    return evidence._Counts.of(_transitions(pairs, statistics), statistics)


def _transitions(pairs: pl.DataFrame, statistics: Statistics) -> pl.DataFrame:
    """Give the sums of the given pairs, 0 where they never come."""
    return (
        pairs.select("source", "target")
        .join(statistics.transitions, on=["source", "target"], how="left", maintain_order="left")
        .fill_null(0)
    )


def _by_document(
    tokens: TokenTable, statistics: Statistics, pairs: pl.DataFrame
) -> dict[str, NDArray[np.float64]]:
    """Count each document alone: name -> (n_documents, m)."""
    bounds = [0, *naive.cuts(tokens), len(tokens.doc_ids)]
    found: dict[str, list[NDArray[np.float64]]] = {}
    for start, stop in pairwise(bounds):
        alone = naive.part(tokens, start, stop)
        one = _counts(pairs, collect(alone, statistics.d_sae, statistics.d_vocab))
        for name in _COUNTED:
            column = np.broadcast_to(np.asarray(getattr(one, name), np.float64), len(pairs))
            found.setdefault(name, []).append(column)
    return {name: np.stack(columns) for name, columns in found.items()}


_COUNTED = (
    "pairs", "source", "target", "lagged", "promoted", "promoted_source", "total", "lag_total",
    "n_tokens", "both",
)  # fmt: skip


def _log_ratios(
    found: dict[str, NDArray[np.float64]], rng: np.random.Generator, n_draws: int
) -> NDArray[np.float64]:
    """(4, m) log of each ratio over its standard deviation among draws of documents."""
    n = len(found["pairs"])
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_draws).astype(np.float64)
    drawn = _ratios({name: weights @ column for name, column in found.items()})
    whole = _ratios({name: column.sum(0) for name, column in found.items()})
    return np.stack(
        [a / np.maximum(b.std(axis=0), 1e-9) for a, b in zip(whole, drawn, strict=True)]
    )


def _ratios(n: dict[str, NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    near = np.log((n["pairs"] + 0.5) / (n["total"] + 1))
    expected = np.log((n["source"] + 0.5) * (n["target"] + 0.5) / (n["total"] + 1) ** 2)
    lagged = np.log((n["lagged"] + 0.5) / (n["lag_total"] + 1))
    same_token = np.log((n["both"] + 0.5) / (n["n_tokens"] + 1))
    promoted = np.log((n["promoted"] + 0.5) / (n["promoted_source"] + 1))
    others = n["source"] - n["promoted_source"]
    rest = np.log((n["pairs"] - n["promoted"] + 0.5) / (others + 1))
    return [near - expected, near - lagged, near - same_token, promoted - rest]
