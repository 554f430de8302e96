"""Sums of a run -> features.parquet: how often, how strongly and on which tokens each feature fires."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sae_core.statistics import NATS_UNIT

if TYPE_CHECKING:
    from sae_core.statistics import Statistics

LISTED_TOKENS = 10  # tokens named in each column of features.parquet
LABEL_TOKENS = 3  # tokens that still read as a phrase
LABEL_MASS = 0.3  # a label of tokens that make up less of the firings would mislead


def features_table(
    statistics: Statistics, vocabulary: pl.DataFrame, logit_effects: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Describe each feature: how often, how strongly, on which tokens it fires; what it promotes.

    Args:
        statistics: sums of the run.
        vocabulary: token_id, token_bytes, token_str.
        logit_effects: feature_idx, token_id, token_str, nats_per_unit; without it, the tokens that
            came and were promoted stand in, and none are known to be suppressed.

    Returns:
        One row a feature: feature_idx, n_fires, n_tokens, density, mean_act, max_act, top_tokens,
        promoted_tokens, suppressed_tokens (lists of token_str, best first), label.
    """
    n_fires = statistics.n_fires
    act_sum = statistics.act_sum / NATS_UNIT
    columns = {
        "feature_idx": np.arange(statistics.d_sae, dtype=np.uint32),
        "n_fires": n_fires,
        "n_tokens": np.full(statistics.d_sae, statistics.n_tokens, np.int64),
        "density": n_fires / max(statistics.n_tokens, 1),
        "mean_act": act_sum / np.maximum(n_fires, 1),
        "max_act": statistics.act_max,
    }
    top = _best_tokens(statistics.token_features, "n_fires", "top_tokens", vocabulary)
    mass = statistics.token_features.group_by("feature_idx").agg(
        (pl.col("n_fires").top_k(LABEL_TOKENS).sum() / pl.col("n_fires").sum()).alias("mass")
    )
    frame = pl.DataFrame(columns)
    for table in (top, mass, *_effect_tokens(statistics, vocabulary, logit_effects)):
        frame = frame.join(table, on="feature_idx", how="left", maintain_order="left")
    lists = pl.col("top_tokens", "promoted_tokens", "suppressed_tokens").fill_null([])
    labels = [
        label_of(tokens or [], mass or 0.0)
        for tokens, mass in frame.select("top_tokens", "mass").rows()
    ]
    return frame.with_columns(lists, pl.Series("label", labels, pl.String)).drop("mass")


def label_of(top_tokens: list[str], mass: float) -> str:
    """Name a feature by the tokens it fires on most.

    Args:
        top_tokens: printable tokens, most frequent first.
        mass: share of its firings on the first three, in [0, 1].

    Example:
        >>> label_of([" class", " href", " id", " src"], 0.8)
        '` class`, ` href`, ` id`'
        >>> label_of([" the", " a", " of", " in"], 0.1)
        'many tokens: ` the`, ` a`, ` of`, ...'
    """
    if not top_tokens:
        return "never fires"
    shown = ", ".join(f"`{token}`" for token in top_tokens[:LABEL_TOKENS])
    return shown if mass >= LABEL_MASS else f"many tokens: {shown}, ..."


def _best_tokens(
    frame: pl.DataFrame, by: str, name: str, vocabulary: pl.DataFrame, *, descending: bool = True
) -> pl.DataFrame:
    best = frame.sort(
        ["feature_idx", by, "token_id"], descending=[False, descending, False]
    ).select("feature_idx", "token_id")
    kept = best.group_by("feature_idx", maintain_order=True).head(LISTED_TOKENS)
    words = kept.join(
        vocabulary.select("token_id", "token_str"), on="token_id", how="left", maintain_order="left"
    )
    return words.group_by("feature_idx", maintain_order=True).agg(pl.col("token_str").alias(name))


def _effect_tokens(
    statistics: Statistics, vocabulary: pl.DataFrame, logit_effects: pl.DataFrame | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    if logit_effects is None:
        promoted = statistics.promoted_tokens
        none = promoted.clear()
        return (
            _best_tokens(promoted, "nats", "promoted_tokens", vocabulary),
            _best_tokens(none, "nats", "suppressed_tokens", vocabulary),
        )
    effects = logit_effects.cast({"feature_idx": pl.UInt32, "token_id": pl.UInt32})
    up, down = (pl.col("nats_per_unit") > 0), (pl.col("nats_per_unit") < 0)
    by = "nats_per_unit"
    return (
        _best_tokens(effects.filter(up), by, "promoted_tokens", vocabulary),
        _best_tokens(effects.filter(down), by, "suppressed_tokens", vocabulary, descending=False),
    )
