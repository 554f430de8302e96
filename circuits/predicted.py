"""What the weights say of an edge: how much i raises, through the next token, the chance of j.

1. `predicted` knows no context. It moves the run's unigram by i's logit effects:

       sum over tokens v of [softmax(l0 + m_i L_i) - softmax(l0)]_v x P(j fires | token v)

   l0 is the log of the unigram. L_i comes from `logit_effects.parquet`, which lists each feature's
   strongest tokens; 0 for the rest, the feature's median. m_i: nats that i gave to promoted tokens
   that came, over what one unit would have given: sum of nats / sum of L.
2. `predicted_in_context` takes the tokens that came after i: the share of P(v) that goes when i's
   direct effect is taken away,

       sum over v of n_ijv (1 - exp(-a_iv) / Z_i) / n_i,  Z_i = sum over v of P(v | i) exp(-a_iv)

   n_ijv: how often v came after i, with j firing on it; n_i: firings of i before a token. P(v | i) is
   how often v came: the sum of n_ijv over j, over the number of features that fire on v. a_iv: nats
   that i gives to v after the final norm; where v was promoted, the nats that were counted, over all
   times that v came, elsewhere m_i L_iv.

docs/causal.md compares both with ablation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import sparse

from sae_core.statistics import NATS_UNIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sae_core.statistics import Statistics

MAX_NATS = 50.0  # exp of it is finite in float64; a larger effect is certainty anyway
CHUNK = 1 << 16  # edges worked on at once
COLUMNS = ("predicted", "predicted_in_context")


def predicted_effects(
    edges: pl.DataFrame, statistics: Statistics, logit_effects: pl.DataFrame | None
) -> pl.DataFrame:
    """Give the predicted rise of P(target at p + 1) for a firing of the source at p.

    Args:
        edges: source, target.
        statistics: sums of the run.
        logit_effects: feature_idx, token_id, nats_per_unit; None gives nulls.

    Returns:
        Float columns `predicted`, in -1..1, and `predicted_in_context`, at most 1, as long as
        `edges`.
    """
    if logit_effects is None or statistics.n_tokens == 0 or edges.is_empty():
        nothing = pl.Series([None] * len(edges), dtype=pl.Float64)
        return pl.DataFrame(dict.fromkeys(COLUMNS, nothing))
    listed = logit_effects.select(
        pl.col("feature_idx", "token_id").cast(pl.UInt32),
        pl.col("nats_per_unit").cast(pl.Float64),
    ).unique(["feature_idx", "token_id"], keep="first", maintain_order=True)
    strengths = _strengths(statistics, listed)
    found = (
        _without_context(edges, statistics, listed, strengths),
        _in_context(edges, statistics, listed, strengths),
    )
    return pl.DataFrame(dict(zip(COLUMNS, found, strict=True)))


def _without_context(
    edges: pl.DataFrame,
    statistics: Statistics,
    listed: pl.DataFrame,
    strengths: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(m,) only listed tokens change their share, all others shrink alike; the sum runs over them."""
    shift, shrink = _shifts(statistics, listed, strengths)
    fires = _fires_on_token(statistics)
    density = statistics.n_fires / statistics.n_tokens
    source, target = edges["source"].to_numpy(), edges["target"].to_numpy()
    values: NDArray[np.float64] = shrink[source] * density[target]
    for start in range(0, len(edges), CHUNK):
        rows = slice(start, start + CHUNK)
        product = shift[source[rows]].multiply(fires[target[rows]])
        values[rows] += np.asarray(product.sum(axis=1)).ravel()
    return values


def _in_context(
    edges: pl.DataFrame,
    statistics: Statistics,
    listed: pl.DataFrame,
    strengths: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(m,) sums over the tokens that came after the source with the target firing on them."""
    ranked = edges.select("source", "target").with_row_index("rank")
    passed = (
        statistics.edge_tokens.join(ranked, on=["source", "target"], how="inner")
        .join(_shares_given(statistics, listed, strengths), on=["source", "token_id"], how="left")
        .sort("rank", "token_id")
        .select("rank", weight=pl.col("n_pairs") * pl.col("given"))
    )
    total = np.bincount(
        passed["rank"].to_numpy(), weights=passed["weight"].to_numpy(), minlength=len(edges)
    )
    n_source = statistics.n_source[edges["source"].to_numpy()]
    return np.asarray(total / np.maximum(n_source, 1))


def _shares_given(
    statistics: Statistics, listed: pl.DataFrame, strengths: NDArray[np.float64]
) -> pl.DataFrame:
    """Give source, token_id and `given`, the share of P(token) that goes with the source."""
    features = statistics.token_features.group_by("token_id").agg(pl.col("n_fires").sum())
    counts = statistics.token_counts[features["token_id"].to_numpy()]
    features = features.select("token_id", n_features=pl.col("n_fires") / pl.Series(counts))
    table = (
        statistics.edge_tokens.group_by("source", "token_id")
        .agg(pl.col("n_pairs").sum())
        .sort("source", "token_id")
        .join(features, on="token_id", how="left", maintain_order="left")
        .join(
            statistics.promoted_tokens.select(
                pl.col("feature_idx").alias("source"), "token_id", "nats"
            ),
            on=["source", "token_id"],
            how="left",
            maintain_order="left",
        )
        .join(
            listed.rename({"feature_idx": "source"}),
            on=["source", "token_id"],
            how="left",
            maintain_order="left",
        )
        .with_columns(came=pl.col("n_pairs") / pl.col("n_features"))
    )
    source, came = table["source"].to_numpy(), table["came"].to_numpy()
    usual = pl.col("nats_per_unit") * pl.Series(strengths[source])
    nats = table.select(pl.coalesce(pl.col("nats") / NATS_UNIT / pl.col("came"), usual, 0.0))
    left = np.exp(-np.clip(nats.to_series().to_numpy(), -MAX_NATS, MAX_NATS))
    norm, total = (
        np.bincount(source, weights=part, minlength=statistics.d_sae)
        for part in (came * left, came)
    )
    given = 1 - left * (total[source] / norm[source])
    return table.select("source", "token_id", given=pl.Series(given))


def _shifts(
    statistics: Statistics, listed: pl.DataFrame, strengths: NDArray[np.float64]
) -> tuple[sparse.csr_array, NDArray[np.float64]]:
    """Changes of next-token shares: (d_sae, d_vocab) listed tokens' own, (d_sae,) that of all."""
    feature, token = listed["feature_idx"].to_numpy(), listed["token_id"].to_numpy()
    effect = strengths[feature] * listed["nats_per_unit"].to_numpy()
    share = statistics.token_counts[token] / statistics.n_tokens
    raised = share * np.expm1(np.clip(effect, -MAX_NATS, MAX_NATS))
    norm = 1 + np.bincount(feature, weights=raised, minlength=statistics.d_sae)
    shape = (statistics.d_sae, statistics.d_vocab)
    shift = sparse.csr_array((raised / norm[feature], (feature, token)), shape=shape)
    return shift, 1 / norm - 1


def _strengths(statistics: Statistics, listed: pl.DataFrame) -> NDArray[np.float64]:
    """(d_sae,) estimates of m_i; 0 where nothing listed was promoted."""
    known = statistics.promoted_tokens.join(
        listed.filter(pl.col("nats_per_unit") > 0), on=["feature_idx", "token_id"], how="inner"
    ).sort("feature_idx", "token_id")
    feature = known["feature_idx"].to_numpy()
    unit = (known["n_promoted"] * known["nats_per_unit"]).to_numpy()
    nats = known["nats"].cast(pl.Float64).to_numpy() / NATS_UNIT
    d_sae = statistics.d_sae
    per_unit = np.bincount(feature, weights=unit, minlength=d_sae)
    given = np.bincount(feature, weights=nats, minlength=d_sae)
    return np.divide(given, per_unit, out=np.zeros(d_sae), where=per_unit > 0)


def _fires_on_token(statistics: Statistics) -> sparse.csr_array:
    """(d_sae, d_vocab) P(feature fires | token)."""
    table = statistics.token_features
    feature, token = table["feature_idx"].to_numpy(), table["token_id"].to_numpy()
    share = table["n_fires"].cast(pl.Float64).to_numpy() / statistics.token_counts[token]
    return sparse.csr_array((share, (feature, token)), shape=(statistics.d_sae, statistics.d_vocab))
