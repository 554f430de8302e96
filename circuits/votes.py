"""The vote: what the entries of a dictionary that fire on a token say about its label.

1. An entry that fires with strength r (its activation over its mean activation where it fires) adds
   r * (log P(label | it fires) - log P(label)), learned from firings weighted by r.
2. The sum is damped: entries that fire together say the same thing, and, counted as independent,
   they would drown the frequency of the label. The damping that tells most labels of the training
   part is taken.
3. To it comes the log frequency of the label; the highest wins.
4. A presence vote is the same with every strength 1: an entry fires, or it does not.

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
BLOCK_TOKENS = 1 << 15  # read at once: neurons are dense, and copies of them all are large
BLOCK_ENTRIES = 1 << 22  # activations summed at once


class Presence(NamedTuple):
    """What of a dictionary fires on each token, compressed by token (CSR)."""

    indptr: NDArray[np.int64]
    """(n_tokens + 1,) start of each token's row."""

    indices: NDArray[np.uint32] | NDArray[np.int32]
    """(nnz,) entries that fire, ascending within a token."""

    values: NDArray[np.float32]
    """(nnz,) their activations, > 0."""

    d: int
    """Number of entries."""


def matrix_of(presence: Presence, kept: NDArray[np.int64] | None = None) -> csr_array:
    """Give the activations as (n_tokens, d), or the rows of some tokens.

    Args:
        presence: what fires.
        kept: (n,) the tokens to give; None gives all.
    """
    n_tokens = len(presence.indptr) - 1
    indices = presence.indices.astype(np.int32, copy=False)
    whole = csr_array((presence.values, indices, presence.indptr), (n_tokens, presence.d))
    return whole if kept is None or len(kept) == n_tokens else whole[kept]


def presence_only(presence: Presence) -> Presence:
    """Forget how strongly entries fire: every activation becomes 1."""
    return presence._replace(values=np.ones(len(presence.values), dtype=np.float32))


def strongest(presence: Presence, k: int) -> Presence:
    """Keep the k strongest entries of each token, in units of the entry's mean activation.

    Args:
        presence: what fires; a token with fewer than k entries keeps them all.
        k: entries a token, >= 1.

    Returns:
        The same with at most k entries a token.
    """
    acts = matrix_of(presence)
    per_mean = _per_mean(acts)
    kept = [
        _top_of_block(presence.indptr[at : at + BLOCK_TOKENS + 1], acts, per_mean, k)
        for at in range(0, acts.shape[0], BLOCK_TOKENS)
    ]
    places = np.concatenate([np.empty(0, np.int64), *kept])
    indptr = np.concatenate(([0], np.cumsum(np.minimum(np.diff(presence.indptr), k))))
    return Presence(indptr, presence.indices[places], presence.values[places], presence.d)


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
    per_mean = _per_mean(acts)
    rows = {int(fold): np.flatnonzero(folds == fold) for fold in np.unique(folds)}
    counts = {fold: _counts(acts, per_mean, labels, at, n_labels) for fold, at in rows.items()}
    for fold in tested:
        train = np.flatnonzero(folds != fold)
        others = np.sum([n for other, n in counts.items() if other != fold], axis=0, dtype=float)
        votes, prior = _fitted_votes(others, labels[train], n_labels)
        sample = train[:: max(1, len(train) // DAMPING_TOKENS)]
        sums = _strengths(acts, per_mean, sample) @ votes
        damping = _fitted_damping(sums, prior, labels[sample])
        for at in _blocks(rows[fold]):
            sums = _strengths(acts, per_mean, at) @ votes
            predicted[at] = np.argmax(damping * sums + prior, axis=1)
    return predicted


def _top_of_block(
    indptr: NDArray[np.int64], acts: csr_array, per_mean: NDArray[np.float32], k: int
) -> NDArray[np.int64]:
    """Give the places of the k strongest entries of each token of a block."""
    start, lengths = indptr[0], np.diff(indptr)
    entries = slice(start, indptr[-1])
    strengths = acts.data[entries] * per_mean[acts.indices[entries]]
    if not len(strengths):
        return np.empty(0, np.int64)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    width = max(k, int(lengths.max(initial=0)))
    padded = np.full((len(lengths), width), -np.inf, dtype=np.float32)
    padded[rows, np.arange(len(rows)) - (indptr[:-1] - start)[rows]] = strengths
    least = np.partition(padded, width - k, axis=1)[rows, width - k]  # the k-th largest of the row
    above, equal = strengths > least, strengths == least
    before = np.cumsum(equal) - equal  # equal ones of the block before this one
    n_left = k - np.bincount(rows[above], minlength=len(lengths))
    place = before - before[np.minimum(indptr[:-1] - start, len(rows) - 1)][rows]
    kept = above | (equal & (place < n_left[rows]))
    places: NDArray[np.int64] = np.flatnonzero(kept) + start
    return places


def _blocks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[at : at + BLOCK_TOKENS] for at in range(0, len(rows), BLOCK_TOKENS)]


def _per_mean(acts: csr_array) -> NDArray[np.float32]:
    """Give one over each entry's mean activation where it fires, (d,); 0 where it never does."""
    d = acts.shape[1]
    n_fires, sums = np.zeros(d, dtype=np.int64), np.zeros(d)
    for at in range(0, len(acts.data), BLOCK_ENTRIES):
        indices, values = acts.indices[at : at + BLOCK_ENTRIES], acts.data[at : at + BLOCK_ENTRIES]
        n_fires += np.bincount(indices, minlength=d)
        sums += np.bincount(indices, weights=values, minlength=d)
    return (n_fires / np.maximum(sums, 1e-30)).astype(np.float32)


def _strengths(
    acts: csr_array, per_mean: NDArray[np.float32], rows: NDArray[np.int64]
) -> csr_array:
    """Give the activations of some tokens, each over its entry's mean where it fires."""
    part = acts[rows]
    part.data = part.data * per_mean[part.indices]
    return part


def _counts(
    acts: csr_array,
    per_mean: NDArray[np.float32],
    labels: NDArray[np.uint8],
    rows: NDArray[np.int64],
    n_labels: int,
) -> NDArray[np.float64]:
    """Sum each entry's strengths by label, (d, n_labels), over some tokens."""
    counts = np.zeros((acts.shape[1], n_labels))
    for at in _blocks(rows):
        one_hot = _one_hot(labels[at], n_labels)
        counts += (one_hot.T @ _strengths(acts, per_mean, at)).toarray().T
    return counts


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
