"""The vote: what the entries of a dictionary that fire on a token say about its label.

1. An entry that fires with strength r (its activation over its mean activation where it fires) adds
   r * (log P(label | it fires) - log P(label)), learned from firings weighted by r.
2. The sum is damped: entries that fire together say the same thing, and, counted as independent,
   they would drown the frequency of the label. The damping that tells most labels of the training
   part is taken.
3. To it comes the log frequency of the label; the highest wins.

The rule is the same for features and for neurons, whatever their number and density.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import csr_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMOOTHING_TOKENS = 10.0  # an entry that fired less often votes hardly more than the prior
DAMPINGS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03)  # 1 is independence
DAMPING_TOKENS = 100_000  # of the training part, evenly spaced, are enough to choose one
BLOCK_TOKENS = 1 << 16  # sorted at once


class Presence(NamedTuple):
    """What of a dictionary fires on each token, compressed by token (CSR)."""

    indptr: NDArray[np.int64]
    """(n_tokens + 1,) start of each token's row."""

    indices: NDArray[np.uint32]
    """(nnz,) entries that fire, ascending within a token."""

    values: NDArray[np.float32]
    """(nnz,) their activations, > 0."""

    d: int
    """Number of entries."""


def matrix_of(presence: Presence) -> csr_array:
    """Give the activations as (n_tokens, d)."""
    shape = (len(presence.indptr) - 1, presence.d)
    return csr_array((presence.values, presence.indices.astype(np.int32), presence.indptr), shape)


def strongest(presence: Presence, k: int) -> Presence:
    """Keep the k strongest entries of each token, in units of the entry's mean activation.

    Args:
        presence: what fires; a token with fewer than k entries keeps them all.
        k: entries a token, >= 1.

    Returns:
        The same with at most k entries a token.
    """
    strengths = _strengths(matrix_of(presence)).data
    n_tokens = len(presence.indptr) - 1
    blocks = range(0, n_tokens, BLOCK_TOKENS)
    kept = [
        _top_of_block(presence.indptr[at : at + BLOCK_TOKENS + 1], strengths, k) for at in blocks
    ]
    rows = np.concatenate([np.empty(0, np.int64), *kept])
    indptr = np.concatenate(([0], np.cumsum(np.minimum(np.diff(presence.indptr), k))))
    return Presence(indptr, presence.indices[rows], presence.values[rows], presence.d)


def vote_predictions(
    acts: csr_array,
    labels: NDArray[np.uint8],
    folds: NDArray[np.int64],
    *,
    tested: tuple[int, ...],
    n_labels: int,
) -> NDArray[np.uint8]:
    """Predict labels by votes fitted on the other folds.

    Args:
        acts: (n_tokens, d) activations.
        labels: (n_tokens,) label of each token.
        folds: (n_tokens,) fold of each token.
        tested: the folds to predict.
        n_labels: number of labels.

    Returns:
        (n_tokens,) predictions; 0 outside the tested folds.
    """
    predicted = np.zeros(len(labels), dtype=np.uint8)
    strengths, one_hot = _strengths(acts), _one_hot(labels, n_labels)
    rows = {int(fold): np.flatnonzero(folds == fold) for fold in np.unique(folds)}
    counts = {fold: (strengths[at].T @ one_hot[at]).toarray() for fold, at in rows.items()}
    for fold in tested:
        train = np.flatnonzero(folds != fold)
        others = np.sum([n for other, n in counts.items() if other != fold], axis=0, dtype=float)
        votes, prior = _fitted_votes(others, labels[train], n_labels)
        sample = train[:: max(1, len(train) // DAMPING_TOKENS)]
        damping = _fitted_damping(strengths[sample] @ votes, prior, labels[sample])
        sums = strengths[rows[fold]] @ votes
        predicted[rows[fold]] = np.argmax(damping * sums + prior, axis=1)
    return predicted


def _top_of_block(
    indptr: NDArray[np.int64], strengths: NDArray[np.float32], k: int
) -> NDArray[np.int64]:
    """Give the places of the k strongest entries of each token of a block."""
    start, lengths = indptr[0], np.diff(indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-strengths[start : indptr[-1]], rows))
    rank = np.arange(len(rows)) - (indptr[:-1] - start)[rows]
    places: NDArray[np.int64] = np.sort(order[rank < k]) + start
    return places


def _strengths(acts: csr_array) -> csr_array:
    """Give each activation over the entry's mean where it fires."""
    n_fires = np.bincount(acts.indices, minlength=acts.shape[1])
    sums = np.bincount(acts.indices, weights=acts.data, minlength=acts.shape[1])
    per_mean = (n_fires / np.maximum(sums, 1e-30)).astype(np.float32)
    return csr_array((acts.data * per_mean[acts.indices], acts.indices, acts.indptr), acts.shape)


def _fitted_votes(
    counts: NDArray[np.float64], labels: NDArray[np.uint8], n_labels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the votes (d, n_labels) of each entry, and the log frequency of each label."""
    seen = np.bincount(labels, minlength=n_labels) + 1e-3  # a label never seen stays possible
    prior = seen / seen.sum()
    n_fires = counts.sum(axis=1, keepdims=True)
    given = (counts + SMOOTHING_TOKENS * prior) / (n_fires + SMOOTHING_TOKENS)
    return np.log(given) - np.log(prior), np.log(prior)


def _fitted_damping(
    sums: NDArray[np.float64], prior: NDArray[np.float64], labels: NDArray[np.uint8]
) -> float:
    """Give the damping under which most labels are told right; of equals, the largest."""
    n_right = [int((np.argmax(by * sums + prior, axis=1) == labels).sum()) for by in DAMPINGS]
    return DAMPINGS[int(np.argmax(n_right))]


def _one_hot(labels: NDArray[np.uint8], n_labels: int) -> csr_array:
    n = len(labels)
    ones = np.ones(n, dtype=np.float32)
    return csr_array((ones, labels.astype(np.int32), np.arange(n + 1)), (n, n_labels))
