"""Sums of a run -> pairs of features, measured and tested: which leads to which, and how surely.

For each ordered pair (i, j) seen at least MIN_PAIRS times, i at p and j at p + 1:

1. lift and G2, the log-likelihood ratio of the 2 x 2 table over all positions with a successor.
2. Bursts. Features of one topic are together at any distance; the pairs at lags 5..20 in the same
   window, and on the same token, say how often that alone would happen. `burst_ratio` is the rate at
   lag 1 over the rate at lags 5..20.
3. q_value. p is the largest of: the one-sided G2 test against chance; the binomial test of the lag-1
   count against the lagged count; and twice the smaller of its test against the count on the same
   token (a burst that ends soon passes the lagged one, but its features share tokens more often
   still) and of the G2 test of firings that promoted what came against the others. A loop that runs
   for long is its own burst: where i follows most firings of i that promote what came, and few of
   the others, the last test stands alone. Benjamini-Hochberg over all pairs of features that fire
   often enough, unseen ones included with p = 1. (Testing for topic only what passed the first test
   would find more, but the counts that choose a pair would test it: permuted text then gives edges.)
4. score = s x g, in nats. s: what knowing that i fired is surely worth for predicting j, in nats a
   firing: the divergence of the lower confidence bound of P(j | i) from the larger of P(j) and P(j
   | i, 5..20 tokens ago); for a loop, if it is more, that of P(i | i promoted) from P(i | i did not
   promote); plus a fifth of the divergence from the larger of P(j) and P(j | i, on the same token):
   states of one automaton never share a token but come round again soon, and their rarer steps
   would have no order without. g: nats that i gave to the token that came, a pair of i and j. A pair
   that only shares a topic has s near 0; without promotion g is. docs/edges.md compares scores.

Source: the definition of edges is Bricken et al. 2023, "Finite State Automata"; G2 is Dunning 1993.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import special

from sae_core.counting import transition_counts
from sae_core.statistics import NATS_UNIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sae_core.statistics import Statistics

__all__ = ["pair_table", "transition_counts"]

MIN_PAIRS = 5  # with fewer, one repeated sentence makes an edge
MIN_FIRES = 10  # a feature that fires less can reach no significant edge; it is not tested
MAX_Q = 0.05  # one edge in twenty may be false
MIN_LOOP_SHARE = 0.5  # a feature that stays on for less of what it promotes makes no long runs
MIN_JACCARD = 0.4  # two features that each miss a quarter of one state's tokens share 0.6 of theirs
Z_LOWER = 3.0  # standard errors below the estimate; about one false bound in 700 pairs
SAME_TOKEN_WEIGHT = 0.2  # more would rank features that take turns within one topic too high
TINY = 1e-12


def pair_table(statistics: Statistics) -> pl.DataFrame:
    """Measure and test every pair of features seen often enough, significant or not.

    Args:
        statistics: sums of a run.

    Returns:
        The columns of `edges` up to p_target_given_promoted, and p_value, by source and target.
    """
    fires = np.minimum(statistics.n_source, statistics.n_target)
    eligible = pl.Series(np.flatnonzero(fires >= MIN_FIRES).astype(np.uint32))
    seen = statistics.transitions.filter(
        pl.col("n_pairs") >= MIN_PAIRS,
        pl.col("source").is_in(eligible.implode()),
        pl.col("target").is_in(eligible.implode()),
    )
    counts = _Counts.of(seen, statistics)
    g2 = _g2(counts)
    p_value = np.maximum(_p_of_g2(counts, g2), _p_of_topic(counts))
    return seen.select("source", "target", "n_pairs", "n_promoted").with_columns(
        pl.Series("score", _score(counts)),
        pl.Series("p_target_given_source", counts.pairs / counts.source),
        pl.Series("lift", counts.lift),
        pl.Series("g2", g2),
        pl.Series("p_value", p_value),
        pl.Series("q_value", _benjamini_hochberg(p_value, len(eligible) ** 2)),
        pl.Series("burst_ratio", _burst_ratio(counts)),
        pl.Series("promoted_nats", counts.nats / np.maximum(counts.promoted, 1)),
        pl.Series(
            "p_target_given_promoted", counts.promoted / np.maximum(counts.promoted_source, 1)
        ),
    )


@dataclass(frozen=True)
class _Counts:
    """Float columns of m pairs, each (m,), and the totals they are out of."""

    pairs: NDArray[np.float64]
    source: NDArray[np.float64]
    target: NDArray[np.float64]
    lagged: NDArray[np.float64]
    promoted: NDArray[np.float64]
    promoted_source: NDArray[np.float64]
    nats: NDArray[np.float64]
    total: NDArray[np.float64] | int
    lag_total: int
    has_promotions: bool
    n_tokens: int
    fires: NDArray[np.float64]
    """Tokens on which the source fires, with a successor or without."""
    both: NDArray[np.float64]
    """Tokens on which source and target fire together."""
    is_loop: NDArray[np.bool_]
    same_role: NDArray[np.bool_]
    """Source and target are one feature, or split one between them."""

    @classmethod
    def of(cls, seen: pl.DataFrame, statistics: Statistics) -> _Counts:
        source, target = seen["source"].to_numpy(), seen["target"].to_numpy()
        fires, both = statistics.n_fires, _both(seen, statistics)
        return cls(
            pairs=seen["n_pairs"].cast(pl.Float64).to_numpy(),
            source=statistics.n_source[source].astype(np.float64),
            target=statistics.n_target[target].astype(np.float64),
            lagged=seen["n_lagged"].cast(pl.Float64).to_numpy(),
            promoted=seen["n_promoted"].cast(pl.Float64).to_numpy(),
            promoted_source=statistics.n_promoted_source[source].astype(np.float64),
            nats=seen["nats"].cast(pl.Float64).to_numpy() / NATS_UNIT,
            total=statistics.n_pairs,
            lag_total=statistics.n_lag_pairs,
            has_promotions=bool(statistics.n_promoted_source.any()),
            n_tokens=statistics.n_tokens,
            fires=fires[source].astype(np.float64),
            both=both,
            is_loop=source == target,
            same_role=both > MIN_JACCARD * (fires[source] + fires[target] - both),
        )

    @property
    def lift(self) -> NDArray[np.float64]:
        """P(i, j) / (P(i) P(j))."""
        expected = np.asarray(self.source * self.target / np.maximum(self.total, 1))
        return np.divide(self.pairs, expected, out=np.zeros_like(expected), where=expected > 0)


def _both(seen: pl.DataFrame, statistics: Statistics) -> NDArray[np.float64]:
    """(m,) tokens on which source and target fire together; for a loop, those on which it fires."""
    low, high = pl.min_horizontal("source", "target"), pl.max_horizontal("source", "target")
    both = (
        seen.select(low.alias("feature_a"), high.alias("feature_b"))
        .join(
            statistics.coactivation,
            on=["feature_a", "feature_b"],
            how="left",
            maintain_order="left",
        )["n_both"]
        .fill_null(0)
        .to_numpy()
    )
    source, target = seen["source"].to_numpy(), seen["target"].to_numpy()
    return np.where(source == target, statistics.n_fires[source], both).astype(np.float64)


def _g2(counts: _Counts) -> NDArray[np.float64]:
    """2 sum O ln(O / E) over the four cells of i fires x j follows; >= 0."""
    without = counts.total - counts.source
    total = 0.0
    for rows, both in (
        (counts.source, counts.pairs),
        (without, counts.target - counts.pairs),
    ):
        for observed, column in (
            (both, counts.target),
            (rows - both, counts.total - counts.target),
        ):
            expected = rows * column / np.maximum(counts.total, 1)
            ratio = np.divide(observed, expected, out=np.ones_like(expected), where=expected > 0)
            total += special.xlogy(observed, np.where(observed > 0, ratio, 1.0))
    return np.asarray(np.maximum(2 * total, 0))


def _p_of_g2(counts: _Counts, g2: NDArray[np.float64]) -> NDArray[np.float64]:
    half = special.chdtrc(1, g2) / 2
    return np.asarray(np.where(counts.lift > 1, half, 1 - half))


def _p_of_topic(counts: _Counts) -> NDArray[np.float64]:
    """P of the lag-1 count were it all topic; a loop is tested by what explains it."""
    promotion = _p_of_promotion(counts)
    either = np.minimum(2 * np.minimum(_p_of_same_token(counts), promotion), 1)
    burst = np.maximum(_p_of_burst(counts), either)
    return np.asarray(np.where(_is_explained(counts), promotion, burst))


def _is_explained(counts: _Counts) -> NDArray[np.bool_]:
    """(m,) whether a feature stays on where it promotes what comes, and little elsewhere."""
    promoted, rest = _shares_by_promotion(counts)
    return counts.same_role & (promoted > MIN_LOOP_SHARE) & (promoted > 2 * rest)


def _p_of_burst(counts: _Counts) -> NDArray[np.float64]:
    """P of at least this share of the near and lagged pairs being near, were all lags alike."""
    share = counts.total / np.maximum(counts.total + counts.lag_total, 1)
    if np.all(share >= 1):  # windows too short for any lagged pair
        return np.zeros_like(counts.pairs)
    return np.asarray(special.betainc(counts.pairs, counts.lagged + 1, share))


def _p_of_same_token(counts: _Counts) -> NDArray[np.float64]:
    """P of as many pairs, were i and j as often together on one token; 0 for one feature's parts."""
    share = counts.total / np.maximum(counts.total + counts.n_tokens, 1)
    p_value = special.betainc(counts.pairs, counts.both + 1, share)
    return np.asarray(np.where(counts.same_role, 0.0, p_value))


def _p_of_promotion(counts: _Counts) -> NDArray[np.float64]:
    """One-sided P of G2, were the target to follow promoted firings as often as the others."""
    table = replace(
        counts,
        pairs=counts.promoted,
        source=counts.promoted_source,
        target=counts.pairs,
        total=counts.source,
    )
    return _p_of_g2(table, _g2(table))


def _burst_ratio(counts: _Counts) -> NDArray[np.float64]:
    near = (counts.pairs + 0.5) / (counts.total + 1)
    return near / ((counts.lagged + 0.5) / (counts.lag_total + 1))


def _score(counts: _Counts) -> NDArray[np.float64]:
    """Give s x g of the module's step 4; s alone in a run where nothing was ever promoted."""
    base = counts.target / np.maximum(counts.total, 1)
    lag_sources = counts.source * counts.lag_total / np.maximum(counts.total, 1)
    topic = (counts.lagged + 0.5) / (lag_sources + 1)
    same_token = (counts.both + 0.5) / (counts.fires + 1)
    lower = _lower_bound(counts.pairs, counts.source)
    near = _divergence(lower, np.maximum(base, topic))
    promoted, rest = _shares_by_promotion(counts)
    loop = _divergence(promoted, np.maximum(base, rest)) * counts.promoted_source / counts.source
    sure = np.where(counts.is_loop, np.maximum(near, loop), near)
    sure += SAME_TOKEN_WEIGHT * _divergence(lower, np.maximum(base, same_token))
    given = counts.nats / counts.pairs if counts.has_promotions else 1.0
    return np.asarray(sure * given)


def _shares_by_promotion(
    counts: _Counts,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower bound of P(j follows | i promoted what came), and P(j follows | i did not)."""
    lower = _lower_bound(counts.promoted, np.maximum(counts.promoted_source, 1))
    others = counts.source - counts.promoted_source
    return lower, (counts.pairs - counts.promoted + 0.5) / (others + 1)


def _divergence(share: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of two coins, nats; 0 where `share` is not above `expected`."""
    p, q = np.clip(share, TINY, 1 - TINY), np.clip(expected, TINY, 1 - TINY)
    return np.asarray(np.where(p > q, special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q), 0.0))


def _lower_bound(hits: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give Wilson's lower bound of a proportion, Z_LOWER standard errors down."""
    share, slack = hits / n, Z_LOWER**2 / n
    spread = Z_LOWER * np.sqrt(share * (1 - share) / n + slack / (4 * n))
    return (share + slack / 2 - spread) / (1 + slack)


def _benjamini_hochberg(p_values: NDArray[np.float64], n_tests: int) -> NDArray[np.float64]:
    """Give q-values among n_tests tests; those not listed have p = 1."""
    if len(p_values) == 0:
        return p_values
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * n_tests / np.arange(1, len(order) + 1)
    q_values = np.empty_like(scaled)
    q_values[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return np.minimum(q_values, 1)
