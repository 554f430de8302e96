"""Compiled loops over a token stream in compressed rows.

They find the state of each token, and what firings give to the tokens that come.
Every loop has a twin in `tests/naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sae_core.kernels import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sae_core.kernels import Stream

MOST = 10.0  # nats, either way, that a firing gives; sums of more would have no room
LEFT_UNIT = 1 << 26  # fixed point of e^-nats: of 10 nats, one part in 3,000
SHARE_UNIT = 1 << 20


class Index(NamedTuple):
    """Pairs of a feature and a token, sorted: each has a row."""

    starts: NDArray[np.int64]
    """(d_sae + 1,) first row of each feature."""

    token_ids: NDArray[np.uint32]
    """(n_rows,) ascending within a feature."""


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


@compiled
def merge_costs(  # noqa: PLR0917 - arrays by position
    counts: NDArray[np.int64],
    sums: NDArray[np.int64],
    n_log_n: NDArray[np.float64],
    row: int,
    others: NDArray[np.int64],
    columns: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Fill out[i] with what is lost of I(row; column), in bits x counts, if others[i] joins `row`.

    `n_log_n` holds n log2 n up to the largest sum of two rows; `columns` are those where `row` is
    not 0.
    """
    for place in range(len(others)):
        other = others[place]
        a, b = sums[row], sums[other]
        lost = n_log_n[a + b] - n_log_n[a] - n_log_n[b]
        for column in columns:
            a, b = counts[row, column], counts[other, column]
            if b > 0:
                lost -= n_log_n[a + b] - n_log_n[a] - n_log_n[b]
        out[place] = max(0.0, lost)


@compiled
def _find(index: Index, feature: int, token: int) -> int:
    """Give the row of a feature and a token, -1 where there is none."""
    low, high = index.starts[feature], index.starts[feature + 1]
    end = high
    while low < high:
        middle = (low + high) // 2
        if index.token_ids[middle] < token:
            low = middle + 1
        else:
            high = middle
    return low if low < end and index.token_ids[low] == token else -1


@compiled
def _left(nats: float) -> float:
    """Give e^-nats: what is left of a token's weight without them."""
    left: float = np.exp(-min(max(np.float64(nats), -MOST), MOST))
    return left


@compiled
def add_left(
    stream: Stream,
    nats: NDArray[np.float32],
    token_ids: NDArray[np.uint32],
    index: Index,
    out: NDArray[np.int64],
) -> None:
    """Add each firing before a token, and e^-nats, to the columns of out by the token it is on.

    `nats` (nnz,) is what each gives to the token that comes; out is (2, n_rows).
    """
    for p in range(len(token_ids)):
        if p + 1 < stream.run_end[p]:
            for entry in range(stream.indptr[p], stream.indptr[p + 1]):
                row = _find(index, stream.features[entry], token_ids[p])
                if row >= 0:
                    out[0, row] += 1
                    out[1, row] += np.int64(np.rint(_left(nats[entry]) * LEFT_UNIT))


@compiled
def add_shares(  # noqa: PLR0917 - arrays by position
    stream: Stream,
    nats: NDArray[np.float32],
    token_ids: NDArray[np.uint32],
    index: Index,
    norms: NDArray[np.float64],
    following: Index,
    out: NDArray[np.int64],
) -> None:
    """Add each firing, and 1 - e^-nats / norm, to the columns of out by the token that comes.

    `norms` (n_rows,) is by the token it is on; out is (2, n_rows of `following`).
    """
    for p in range(len(token_ids)):
        if p + 1 < stream.run_end[p]:
            for entry in range(stream.indptr[p], stream.indptr[p + 1]):
                feature = stream.features[entry]
                row = _find(index, feature, token_ids[p])
                to = _find(following, feature, token_ids[p + 1])
                if row >= 0 and to >= 0:
                    share = 1 - _left(nats[entry]) / norms[row]
                    out[0, to] += 1
                    out[1, to] += np.int64(np.rint(share * SHARE_UNIT))
