"""Questions to a feature graph: motifs, found without naming their features.

- loop: a feature that leads to itself.
- pair: two features that lead to each other.
- chain: features each of which leads best to the next and is best reached from the one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from circuits.graph import FeatureGraph

MOTIFS = ("loop", "pair", "chain")
MIN_CHAIN = 3  # two features in a row are an edge
SCHEMA: dict[str, Any] = {"motif": pl.String, "features": pl.List(pl.UInt32), "score": pl.Float64}


def find_motifs(graph: FeatureGraph, motif: str, *, limit: int = 100) -> pl.DataFrame:
    """Find all motifs of one kind.

    Args:
        graph: the feature graph.
        motif: loop, pair or chain.
        limit: give at most this many.

    Returns:
        motif, features (in order), score (of the weakest edge); best first.

    Raises:
        ValueError: there is no such motif, or limit is below 1.
    """
    finders = {"loop": _loops, "pair": _pairs, "chain": _chains}
    if motif not in finders:
        raise ValueError(f"there is no motif {motif!r}; motifs are {', '.join(MOTIFS)}")
    if limit < 1:
        raise ValueError(f"limit must be >= 1, got {limit}")
    best_first = graph.edges.select("source", "target", "score").sort(
        ["score", "source", "target"], descending=[True, False, False]
    )
    found = finders[motif](best_first)
    frame = pl.DataFrame([(motif, *row) for row in found], schema=SCHEMA, orient="row")
    return frame.sort(["score", "features"], descending=[True, False]).head(limit)


def _loops(edges: pl.DataFrame) -> list[tuple[list[int], float]]:
    return [([i], score) for i, j, score in edges.rows() if i == j]


def _pairs(edges: pl.DataFrame) -> list[tuple[list[int], float]]:
    scores = {(i, j): score for i, j, score in edges.rows()}
    return [
        ([i, j], min(score, scores[j, i]))
        for (i, j), score in scores.items()
        if i < j and (j, i) in scores
    ]


def _chains(edges: pl.DataFrame) -> list[tuple[list[int], float]]:
    after: dict[int, tuple[int, float]] = {}
    before: dict[int, int] = {}
    for i, j, score in edges.filter(pl.col("source") != pl.col("target")).rows():
        after.setdefault(i, (j, score))
        before.setdefault(j, i)
    links = {i: step for i, step in after.items() if before[step[0]] == i}
    starts = sorted(set(links) - {j for j, _ in links.values()})
    chains = [_follow(start, links) for start in starts]
    return [chain for chain in chains if len(chain[0]) >= MIN_CHAIN]


def _follow(start: int, links: dict[int, tuple[int, float]]) -> tuple[list[int], float]:
    features, weakest = [start], float("inf")
    while features[-1] in links:
        following, score = links[features[-1]]
        features.append(following)
        weakest = min(weakest, score)
    return features, weakest
