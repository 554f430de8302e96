"""What share of a token's probability a firing gave to it: read off the tokens of a run.

Feature i fires on token c, gives a nats to the token v that comes, and e^-a is what is left of v's
weight when that is taken away. All weights together shrink too, by Z; so that of P(v) the share

    1 - e^-a / Z_ic

goes. Z_ic is the mean of e^-a over the firings of i on c: the mean over the tokens that come is what
the model expects, as far as it is calibrated. It is drawn to the mean over all firings of i by
SMOOTHING firings. `given` is the mean share over the times that v came after i.

Sums are whole numbers of fixed-point units; neither threads nor the order of shards change them. Of
a long run evenly spaced shards are read, twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from circuits import kernels
from circuits.kernels import Index
from sae_core.counting import stream_of
from sae_core.errors import StoreError
from sae_core.store import has_acts, iter_token_shards, token_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from sae_core.kernels import Stream
    from sae_core.schema import TokenTable
    from sae_core.statistics import Statistics

SMOOTHING = 5.0  # firings; chosen on other edges than those of docs/causal.md
SAMPLE_TOKENS = 1 << 22  # about as many are read


def given_in_run(run: Path, statistics: Statistics) -> pl.DataFrame | None:
    """Give what the firings of a run's sources gave to the tokens that came.

    Args:
        run: the run directory.
        statistics: its sums.

    Returns:
        source, token_id, given: the mean share, at most 1. None where the run keeps no activations.

    Raises:
        StoreError: a shard is damaged, or of other features or tokens than the sums.
    """
    files = token_files(run)
    if not files or not has_acts(files[0]):
        return None
    every = -(-statistics.n_tokens // SAMPLE_TOKENS) or 1
    return given_by(lambda: iter_token_shards(run, held_out=False, every=every), statistics)


def given_by(read: Callable[[], Iterable[TokenTable]], statistics: Statistics) -> pl.DataFrame:
    """Give what firings gave to the tokens that came.

    Args:
        read: gives the tokens, the same each time.
        statistics: their sums, or those of more tokens.

    Returns:
        source, token_id, given; of pairs of which a firing was read.
    """
    d_sae = statistics.d_sae
    followed = (
        statistics.edge_tokens.select("source", "token_id").unique().sort("source", "token_id")
    )
    on, after = indexed(statistics.token_features, d_sae), indexed(followed, d_sae)
    left, shares = (np.zeros((2, len(index.token_ids)), np.int64) for index in (on, after))
    for tokens in _checked(read(), statistics):
        kernels.add_left(_stream(tokens), tokens.promotions, tokens.token_ids, on, left)
    norms = _norms(on, left)
    for tokens in _checked(read(), statistics):
        columns = tokens.promotions, tokens.token_ids
        kernels.add_shares(_stream(tokens), *columns, on, norms, after, shares)
    given = pl.Series("given", shares[1] / kernels.SHARE_UNIT / np.maximum(shares[0], 1))
    return followed.with_columns(given).filter(pl.Series(shares[0] > 0))


def indexed(frame: pl.DataFrame, d_sae: int) -> Index:
    """Index a frame whose first two columns, a feature and a token, are sorted."""
    features, token_ids = (column.to_numpy() for column in frame.get_columns()[:2])
    edges = np.arange(d_sae + 1, dtype=features.dtype)
    return Index(np.searchsorted(features, edges).astype(np.int64), token_ids)


def _checked(shards: Iterable[TokenTable], statistics: Statistics) -> Iterator[TokenTable]:
    """Pass on shards whose ids the compiled loops may take for places."""
    for tokens in shards:
        for name, ids, size in (
            ("feature", tokens.features, statistics.d_sae),
            ("token", tokens.token_ids, statistics.d_vocab),
        ):
            if ids.max(initial=0) >= size:
                raise StoreError(
                    f"tokens/ holds the {name} {ids.max()}, the sums are of {size} {name}s; "
                    "gather again"
                )
        yield tokens


def _stream(tokens: TokenTable) -> Stream:
    return stream_of(tokens.indptr, tokens.features, tokens.doc_ids, tokens.window_ids)


def _norms(on: Index, left: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) what is left of all weights, of each feature on each token."""
    n, sums = left[0], left[1] / kernels.LEFT_UNIT
    of = np.repeat(np.arange(len(on.starts) - 1), np.diff(on.starts))
    n_all, all_left = (np.bincount(of, weights=part, minlength=len(on.starts) - 1) for part in left)
    mean = all_left / kernels.LEFT_UNIT / np.maximum(n_all, 1)
    norms: NDArray[np.float64] = (sums + SMOOTHING * mean[of]) / (n + SMOOTHING)
    return norms
