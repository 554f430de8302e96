"""Tested pairs of features -> the tables of a graph: its edges, their tokens, and what fires together.

1. An edge is a pair that is significant (`evidence`) and more often seen than by chance.
2. Edges get what the weights say of them (`predicted`), and the tokens between source and target.
3. Of the sums of a run on disk only those rows are read that an edge can come of: a wide dictionary
   has a hundred times as many pairs, most of them seen once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from circuits import evidence
from circuits.evidence import MAX_Q, pair_table
from circuits.predicted import predicted_effects
from sae_core import statistics as sums

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sae_core.statistics import Statistics

IS_EDGE = (pl.col("q_value") < MAX_Q) & (pl.col("lift") > 1)
EDGE_SCHEMA: dict[str, Any] = {
    "source": pl.UInt32,
    "target": pl.UInt32,
    "score": pl.Float64,
    "n_pairs": pl.Int64,
    "p_target_given_source": pl.Float64,
    "lift": pl.Float64,
    "g2": pl.Float64,
    "q_value": pl.Float64,
    "burst_ratio": pl.Float64,
    "n_promoted": pl.Int64,
    "promoted_nats": pl.Float64,
    "p_target_given_promoted": pl.Float64,
    "predicted": pl.Float64,
    "causal": pl.Float64,
    "causal_stderr": pl.Float64,
    "predicted_in_context": pl.Float64,
}


@dataclass(frozen=True)
class EdgeTables:
    """The graph's tables, with the columns of the run directory's `graph/*.parquet`."""

    edges: pl.DataFrame
    """One row an edge, best first."""

    edge_tokens: pl.DataFrame
    """One row an edge and token between, in the order of the edges, then best first."""

    coactivation: pl.LazyFrame
    """One row a pair of features that fire on the same token."""

    reason: str
    """Why there are no edges, and what would give some; empty when there are."""


def build_edges(
    statistics: Statistics,
    vocabulary: pl.DataFrame,
    *,
    logit_effects: pl.DataFrame | None = None,
    given: pl.DataFrame | None = None,
) -> EdgeTables:
    """Turn sums into significant edges, best first.

    Args:
        statistics: sums of the documents that are not held out.
        vocabulary: token_id, token_bytes, token_str.
        logit_effects: as of `predicted_effects`.
        given: as of `predicted_effects`.

    Returns:
        The tables; empty ones with a reason when no pair passes.
    """
    found = find_edges(statistics)
    pairs = statistics.coactivation.lazy()
    return tables_of(found, statistics, vocabulary, pairs, logit_effects=logit_effects, given=given)


class Found(NamedTuple):
    """The pairs that are edges."""

    edges: pl.DataFrame
    """Columns of `evidence.pair_table`, best first."""

    reason: str
    """Why there are none; empty when there are."""


def find_edges(statistics: Statistics) -> Found:
    """Give the pairs that are edges; `edge_tokens` need not be there."""
    pairs = pair_table(statistics)
    order = ["score", "source", "target"]
    kept = pairs.filter(IS_EDGE).sort(order, descending=[True, False, False])
    return Found(kept, "" if len(kept) else _why_no_edge(pairs, statistics))


def tables_of(
    found: Found,
    statistics: Statistics,
    vocabulary: pl.DataFrame,
    pairs: pl.LazyFrame,
    *,
    logit_effects: pl.DataFrame | None,
    given: pl.DataFrame | None,
) -> EdgeTables:
    """Give the tables of a graph, from its edges; see `build_edges`, and `coactivation` for pairs."""
    edges = found.edges.with_columns(
        *predicted_effects(found.edges, statistics, logit_effects, given),
        *(pl.lit(None, pl.Float64).alias(name) for name in ("causal", "causal_stderr")),
    )
    return EdgeTables(
        edges=edges.select(pl.col(name).cast(kind) for name, kind in EDGE_SCHEMA.items()),
        edge_tokens=_edge_tokens(edges, statistics.edge_tokens, vocabulary),
        coactivation=coactivation(pairs, statistics),
        reason=found.reason,
    )


def read_pairs(folder: Path) -> Statistics:
    """Read saved sums, of their tables of pairs no more than edges are found in.

    Args:
        folder: as `sae_core.statistics.save` wrote it.

    Returns:
        Sums without `edge_tokens`, of which `find_edges` gives the same edges as of all.

    Raises:
        StoreError: a file is missing or damaged.
    """
    seen = sums.read_rows(folder, "transitions", pl.col("n_pairs") >= evidence.MIN_PAIRS)
    if seen.is_empty():
        seen = sums.read_largest(folder, "transitions", "n_pairs")
    low, high = pl.min_horizontal("source", "target"), pl.max_horizontal("source", "target")
    either = seen.select(feature_a=low, feature_b=high).unique()
    both = sums.read_among(folder, "coactivation", either)
    return replace(sums.load(folder, pairs=False), transitions=seen, coactivation=both)


def read_edge_tokens(statistics: Statistics, folder: Path, edges: pl.DataFrame) -> Statistics:
    """Add the tokens of edges to sums that `read_pairs` gave."""
    pairs = edges.select("source", "target")
    return replace(statistics, edge_tokens=sums.read_among(folder, "edge_tokens", pairs))


def _edge_tokens(
    edges: pl.DataFrame, edge_tokens: pl.DataFrame, vocabulary: pl.DataFrame
) -> pl.DataFrame:
    ranked = edges.select("source", "target").with_row_index("rank")
    edge = pl.col("rank")
    promoted = pl.col("n_promoted").sum().over(edge)
    share = (
        pl.when(promoted > 0)
        .then(pl.col("n_promoted") / promoted)
        .otherwise(pl.col("n_pairs") / pl.col("n_pairs").sum().over(edge))
    )
    words = vocabulary.select("token_id", "token_str")
    return (
        edge_tokens.join(ranked, on=["source", "target"], how="inner")
        .with_columns(share.alias("share"))
        .join(words, on="token_id", how="left")
        .sort(["rank", "share", "n_pairs", "token_id"], descending=[False, True, True, False])
        .select("source", "target", "token_id", "token_str", "n_pairs", "n_promoted", "share")
    )


def coactivation(pairs: pl.LazyFrame, statistics: Statistics) -> pl.LazyFrame:
    """Give the table of features that fire on the same token.

    Args:
        pairs: feature_a, feature_b, n_both.
        statistics: sums of the same run.
    """
    key = pl.col("feature_a").cast(pl.Int64) * (1 << 32) + pl.col("feature_b")
    step: Any = pairs.select(key.diff().min()).collect(engine="streaming").item()
    if step is not None and step < 0:  # written by hand; sorting takes memory
        pairs = pairs.sort("feature_a", "feature_b")
    both, a, b = pl.col("n_both").cast(pl.Float64), pl.col("fires_a"), pl.col("fires_b")
    fires = statistics.n_fires.astype(np.float64)
    return (
        pairs.join(_fires(fires, "a"), on="feature_a", how="left", maintain_order="left")
        .join(_fires(fires, "b"), on="feature_b", how="left", maintain_order="left")
        .select(
            "feature_a",
            "feature_b",
            "n_both",
            lift=both * statistics.n_tokens / (a * b),
            jaccard=both / (a + b - both),
        )
    )


def _fires(fires: NDArray[np.float64], which: str) -> pl.LazyFrame:
    features = np.arange(len(fires), dtype=np.uint32)
    return pl.LazyFrame({f"feature_{which}": features, f"fires_{which}": fires})


def _why_no_edge(pairs: pl.DataFrame, statistics: Statistics) -> str:
    if statistics.n_tokens == 0:
        return "no token was counted: there is none, or all are held out; give more text, or hold out less"
    if statistics.n_pairs == 0:
        return "no token has a successor in its window: there is no pair to count; give more text"
    most: Any = statistics.transitions["n_pairs"].max()
    if pairs.is_empty():
        return (
            f"no two features that fire {evidence.MIN_FIRES} times follow each other {evidence.MIN_PAIRS} times (the "
            f"most frequent pair: {most or 0}); give more text"
        )
    best = pairs.filter(pl.col("lift") > 1).sort("q_value", "source", "target").head(1)
    if best.is_empty():
        return "no feature follows another more often than chance; give more text"
    row = best.row(0, named=True)
    return (
        f"no pair of features is significant at q < {MAX_Q}; the nearest, {row['source']} -> "
        f"{row['target']}, has q = {row['q_value']:.3g} after {row['n_pairs']} pairs; "
        "give more text"
    )
