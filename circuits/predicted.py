"""What the weights alone say of an edge: how much i raises the chance that j fires next.

predicted(i, j) = sum over tokens v of [softmax(l0 + m_i L_i) - softmax(l0)]_v x P(j fires | token
v), where l0 is the log of the run's unigram, L_i the feature's logit effects and m_i its usual
strength after the final norm.

1. L_i: the tokens listed in `logit_effects.parquet`, the others at 0, the feature's median.
2. m_i: nats that i gave to promoted tokens that came, over what one unit would have given: sum of
   nats / sum of L.
3. Only listed tokens change their share, all others shrink alike, so the sum runs over listed
   tokens.
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


def predicted_effects(
    edges: pl.DataFrame, statistics: Statistics, logit_effects: pl.DataFrame | None
) -> pl.Series:
    """Give the predicted rise of P(target at p + 1) for a firing of the source at p.

    Args:
        edges: source, target.
        statistics: sums of the run.
        logit_effects: feature_idx, token_id, nats_per_unit; None gives nulls.

    Returns:
        A float column `predicted`, in -1..1, as long as `edges`.
    """
    if logit_effects is None or statistics.n_tokens == 0 or edges.is_empty():
        return pl.Series("predicted", [None] * len(edges), dtype=pl.Float64)
    shift, shrink = _shifts(statistics, logit_effects)
    fires = _fires_on_token(statistics)
    density = statistics.n_fires / statistics.n_tokens
    source, target = edges["source"].to_numpy(), edges["target"].to_numpy()
    values = shrink[source] * density[target]
    for start in range(0, len(edges), CHUNK):
        rows = slice(start, start + CHUNK)
        product = shift[source[rows]].multiply(fires[target[rows]])
        values[rows] += np.asarray(product.sum(axis=1)).ravel()
    return pl.Series("predicted", values)


def _shifts(
    statistics: Statistics, logit_effects: pl.DataFrame
) -> tuple[sparse.csr_array, NDArray[np.float64]]:
    """Changes of next-token shares: (d_sae, d_vocab) listed tokens' own, (d_sae,) that of all."""
    listed = logit_effects.select(
        pl.col("feature_idx", "token_id").cast(pl.UInt32),
        pl.col("nats_per_unit").cast(pl.Float64),
    ).unique(["feature_idx", "token_id"], keep="first", maintain_order=True)
    feature, token = listed["feature_idx"].to_numpy(), listed["token_id"].to_numpy()
    effect = _strengths(statistics, listed)[feature] * listed["nats_per_unit"].to_numpy()
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
