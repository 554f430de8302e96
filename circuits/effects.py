"""Measured effects of edges: which edges to measure, and where the numbers go in the edge table.

Measuring needs the model, so it is done elsewhere (`sae_core.run_effects`) and handed in as a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable

    Measure = Callable[[pl.DataFrame], pl.DataFrame]
    """From edges (source, target) to their effects (source, target, causal, causal_stderr)."""

KEY = ["source", "target"]
EFFECTS = ["causal", "causal_stderr"]
N_DECILES = 10


def edges_by_decile(edges: pl.DataFrame, n_each: int, *, seed: int = 0) -> pl.DataFrame:
    """Choose edges at random, as many from each tenth of the order by score.

    Args:
        edges: best first.
        n_each: edges of each tenth; all of it where it has no more.
        seed: of the choice.

    Returns:
        Rows of `edges` in their order, and `decile`, 1 for the best tenth.

    Raises:
        ValueError: n_each is below 1.
    """
    if n_each < 1:
        raise ValueError(f"n_each must be >= 1 edges of each tenth, got {n_each}")
    decile = (pl.int_range(pl.len()) * N_DECILES // pl.len() + 1).cast(pl.Int64)
    ranked = edges.with_columns(decile.alias("decile"))
    parts = [
        part.sample(min(n_each, len(part)), seed=seed + at)
        for at, part in enumerate(ranked.partition_by("decile", maintain_order=True))
    ]
    chosen = pl.concat([part.select(KEY) for part in parts]) if parts else ranked.select(KEY)
    return ranked.join(chosen, on=KEY, how="semi", maintain_order="left")


def with_effects(edges: pl.DataFrame, effects: pl.DataFrame) -> pl.DataFrame:
    """Give edges with their measured effects, null where there is none.

    Args:
        edges: with the columns causal and causal_stderr, whatever they hold.
        effects: source, target, causal, causal_stderr; each edge once.

    Returns:
        The same rows and columns.

    Raises:
        ValueError: a column is missing, or an edge has two effects.
    """
    missing = [name for name in KEY + EFFECTS if name not in effects.columns]
    if missing:
        raise ValueError(f"effects lack the column {missing[0]!r}; expected {KEY + EFFECTS}")
    if effects.select(KEY).is_duplicated().any():
        raise ValueError("effects hold an edge twice; give each edge once")
    found = effects.select(
        *(pl.col(name).cast(pl.UInt32) for name in KEY),
        *(pl.col(name).cast(pl.Float64) for name in EFFECTS),
    )
    joined = edges.drop(EFFECTS).join(found, on=KEY, how="left", maintain_order="left")
    return joined.select(edges.columns)
