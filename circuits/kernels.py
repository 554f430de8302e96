"""Compiled loops of automata: a token stream in compressed rows -> the state of each token.

Every loop has a twin in `tests/naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_core.kernels import compiled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@compiled
def current_states(  # noqa: PLR0917 - arrays by position
    indptr: NDArray[np.int64],
    features: NDArray[np.uint32],
    acts: NDArray[np.float32],
    state_of: NDArray[np.int32],
    inverse: NDArray[np.float64],
    threshold: float,
    scores: NDArray[np.float64],
    out: NDArray[np.int32],
) -> None:
    """Fill out[p] with the state of the largest sum of act * inverse, -1 if not above threshold.

    Ties go to the lowest state. `scores` (n_states,) is working memory, zero before and after.
    """
    for p in range(len(out)):
        for entry in range(indptr[p], indptr[p + 1]):
            state = state_of[features[entry]]
            if state >= 0:
                scores[state] += acts[entry] * inverse[features[entry]]
        best, best_score = -1, threshold
        for entry in range(indptr[p], indptr[p + 1]):
            state = state_of[features[entry]]
            if state < 0:
                continue
            score = scores[state]
            if score > best_score or (score == best_score and 0 <= state < best):
                best, best_score = state, score
        for entry in range(indptr[p], indptr[p + 1]):
            if state_of[features[entry]] >= 0:
                scores[state_of[features[entry]]] = 0.0
        out[p] = best
