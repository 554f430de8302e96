"""Compiled loops of single features: which tokens each fires on, and which it promotes.

They belong to `kernels` and follow its conventions; every loop has a twin in `tests/naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_core.kernels import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sae_core.kernels import Nexts, Sources


@compiled
def fill_promoted_tokens(
    sources: Sources,
    nexts: Nexts,
    state: NDArray[np.int64],
    out: NDArray[np.int64],
) -> None:
    """Write (feature_idx, token_id, n_promoted, nats) of what came and was promoted, sorted.

    Leaves the number of rows in state[1].
    """
    at = -1
    for i in range(len(sources.starts) - 1):
        token = np.int64(-1)
        for k in range(sources.starts[i], sources.starts[i + 1]):
            if sources.nats[k] == 0:
                continue
            if nexts.token_ids[sources.pos[k]] != token:
                token = np.int64(nexts.token_ids[sources.pos[k]])
                at += 1
                out[0, at] = i
                out[1, at] = token
                out[2, at] = 0
                out[3, at] = 0
            out[2, at] += 1
            out[3, at] += sources.nats[k]
    state[1] = at + 1


@compiled
def fill_token_features(
    by_token: Sources,
    token_ids: NDArray[np.uint32],
    state: NDArray[np.int64],
    out: NDArray[np.int64],
) -> None:
    """Write (feature_idx, token_id, n_fires), sorted; leaves the number of rows in state[1]."""
    at = -1
    for i in range(len(by_token.starts) - 1):
        token = np.int64(-1)
        for k in range(by_token.starts[i], by_token.starts[i + 1]):
            if token_ids[by_token.pos[k]] != token:
                token = np.int64(token_ids[by_token.pos[k]])
                at += 1
                out[0, at] = i
                out[1, at] = token
                out[2, at] = 0
            out[2, at] += 1
    state[1] = at + 1
