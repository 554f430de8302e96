"""What the weights say of an edge: how much i raises, through the next token, the chance of j.

1. `predicted` knows no context. It moves the run's unigram by i's logit effects:

       sum over tokens v of [softmax(l0 + m_i L_i) - softmax(l0)]_v x P(j fires | token v)

   l0 is the log of the unigram. L_i comes from `logit_effects.parquet`, which lists each feature's
   strongest tokens; 0 for the rest, the feature's median. m_i: nats that i gave to promoted tokens
   that came, over what one unit would have given: sum of nats / sum of L.
2. `predicted_in_context` takes the tokens that came after i, each with the share of its probability
   that i gave (`circuits.given`):

       sum over v of n_ijv given_iv / n_i

   n_ijv: how often v came after i, with j firing on it; n_i: firings of i before a token.

docs/causal.md compares both with ablation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    edges: pl.DataFrame,
    statistics: Statistics,
    logit_effects: pl.DataFrame | None,
    given: pl.DataFrame | None,
) -> pl.DataFrame:
    """Give the predicted rise of P(target at p + 1) for a firing of the source at p.

    Args:
        edges: source, target.
        statistics: sums of the run.
        logit_effects: feature_idx, token_id, nats_per_unit; without it `predicted` is null.
        given: as `given_in_run` gives it; without it `predicted_in_context` is null.

    Returns:
        Float columns `predicted`, in -1..1, and `predicted_in_context`, at most 1, as long as
        `edges`.
    """
    is_empty = statistics.n_tokens == 0 or edges.is_empty()
    nothing = pl.Series([None] * len(edges), dtype=pl.Float64)
    found: dict[str, Any] = dict.fromkeys(COLUMNS, nothing)
    if logit_effects is not None and not is_empty:
        found["predicted"] = _without_context(edges, statistics, logit_effects)
    if given is not None and not is_empty:
        found["predicted_in_context"] = _in_context(edges, statistics, given)
    return pl.DataFrame(found)


def _without_context(
    edges: pl.DataFrame, statistics: Statistics, logit_effects: pl.DataFrame
) -> NDArray[np.float64]:
    """(m,) only listed tokens change their share, all others shrink alike; the sum runs over them."""
    listed = logit_effects.select(
        pl.col("feature_idx", "token_id").cast(pl.UInt32),
        pl.col("nats_per_unit").cast(pl.Float64),
    ).unique(["feature_idx", "token_id"], keep="first", maintain_order=True)
    strengths = _strengths(statistics, listed)
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
    edges: pl.DataFrame, statistics: Statistics, given: pl.DataFrame
) -> NDArray[np.float64]:
    """(m,) sums over the tokens that came after the source with the target firing on them."""
    ranked = edges.select("source", "target").with_row_index("rank")
    passed = (
        statistics.edge_tokens.join(ranked, on=["source", "target"], how="inner")
        .join(given, on=["source", "token_id"], how="inner")
        .sort("rank", "token_id")
        .select("rank", weight=pl.col("n_pairs") * pl.col("given"))
    )
    total = np.bincount(
        passed["rank"].to_numpy(), weights=passed["weight"].to_numpy(), minlength=len(edges)
    )
    n_source = statistics.n_source[edges["source"].to_numpy()]
    return np.asarray(total / np.maximum(n_source, 1))


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
