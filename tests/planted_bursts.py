"""Features of one bursty topic that have nothing else to do with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from planted_text import N_CONTEXT

from sae_core.schema import TokenTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATES = (0.5, 0.5, 0.2, 0.2, 0.1, 0.1)  # of firing inside a burst; none fires outside
N_FEATURES = len(RATES)


def bursty_tokens(n: int, mean_length: int, rng: np.random.Generator) -> TokenTable:
    """Make one document with bursts of a topic on about a fifth of its tokens.

    Args:
        n: tokens.
        mean_length: of a burst, in tokens; lengths are geometric.
        rng: source of chance.

    Returns:
        The stream. Promotions are noise: what came is no more promoted where another one fires.
    """
    fires = _bursts(n, mean_length, rng)
    at = np.arange(n)
    features = np.nonzero(fires)[1].astype(np.uint32)
    return TokenTable(
        doc_ids=np.zeros(n, np.uint32),
        window_ids=(at // N_CONTEXT).astype(np.uint32),
        pos=at.astype(np.uint32),
        token_ids=np.zeros(n, np.uint32),
        byte_start=at,
        byte_end=at + 1,
        indptr=np.concatenate([[0], np.cumsum(fires.sum(1))]),
        features=features,
        acts=np.ones(len(features), np.float32),
        promotions=rng.normal(0, 0.5, len(features)).astype(np.float32),
    )


def _bursts(n: int, mean_length: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    fires, at = np.zeros((n, N_FEATURES), dtype=bool), 0
    while at < n:
        start = at + int(rng.geometric(1 / (4 * mean_length)))
        at = start + int(rng.geometric(1 / mean_length))
        inside = fires[start:at]
        inside[:] = rng.random(inside.shape) < RATES
    return fires
