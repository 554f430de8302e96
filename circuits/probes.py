"""Linear probes: how much of the truth a linear reader of the neurons finds, with few or with all.

1. One pass sums, per fold, the counts, the sums and the products of the activations (so number,
   mean and covariance of each label), so that leaving a fold out is a subtraction.
2. The full probe is linear discriminant analysis over all neurons.
3. A k-sparse probe reads, for each label, the k neurons that differ most between the label and the
   rest (in standard deviations), by a discriminant of its own; the highest log-odds win.

Source: Gurnee et al. 2023, "Finding Neurons in a Haystack" (k-sparse probes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

BLOCK_ROWS = 8192  # tokens held dense at once
RIDGE = 1e-3  # share of the mean variance added to the diagonal: neurons may be copies of others


@dataclass(frozen=True)
class _Sums:
    """Sufficient statistics of a set of tokens; they add and subtract."""

    counts: NDArray[np.float64]
    """(n_labels,) tokens of each label."""

    totals: NDArray[np.float64]
    """(n_labels, d) sum of the activations of each label."""

    products: NDArray[np.float64]
    """(d, d) sum of the outer products."""


@dataclass(frozen=True)
class _Linear:
    """A fitted probe: the label is the column of the highest score."""

    weights: NDArray[np.float64]
    """(d, n_labels)."""

    bias: NDArray[np.float64]
    """(n_labels,) log-odds or log-prior included; -inf for a label never seen."""


def probe_predictions(
    acts: csr_array,
    labels: NDArray[np.uint8],
    folds: NDArray[np.int64],
    *,
    tested: tuple[int, ...],
    n_labels: int,
    widths: tuple[int | None, ...],
) -> list[NDArray[np.uint8]]:
    """Predict labels by probes fitted on the other folds.

    Args:
        acts: (n_tokens, d) activations.
        labels: (n_tokens,) label of each token.
        folds: (n_tokens,) fold of each token.
        tested: the folds to predict.
        n_labels: number of labels.
        widths: neurons a class each probe may read; None reads all of them.

    Returns:
        For each width, (n_tokens,) predictions; 0 outside the tested folds.
    """
    names = np.unique(folds).tolist()
    sums = {fold: _sums(acts, labels, np.flatnonzero(folds == fold), n_labels) for fold in names}
    predictions = [np.zeros(len(labels), dtype=np.uint8) for _ in widths]
    for fold in tested:
        train = _added([sums[other] for other in names if other != fold])
        rows = np.flatnonzero(folds == fold)
        for width, predicted in zip(widths, predictions, strict=True):
            fitted = _discriminant(train) if width is None else _sparse(train, width)
            predicted[rows] = _predict(acts, rows, fitted)
    return predictions


def _sums(
    acts: csr_array, labels: NDArray[np.uint8], rows: NDArray[np.int64], n_labels: int
) -> _Sums:
    d = acts.shape[1]
    totals, products = np.zeros((n_labels, d)), np.zeros((d, d))
    for at in range(0, len(rows), BLOCK_ROWS):
        block = rows[at : at + BLOCK_ROWS]
        dense = acts[block].toarray().astype(np.float32)
        one_hot = (labels[block, None] == np.arange(n_labels)).astype(np.float32)
        totals += one_hot.T @ dense
        products += dense.T @ dense
    return _Sums(np.bincount(labels[rows], minlength=n_labels).astype(float), totals, products)


def _added(parts: list[_Sums]) -> _Sums:
    return _Sums(
        np.sum([part.counts for part in parts], axis=0),
        np.sum([part.totals for part in parts], axis=0),
        np.sum([part.products for part in parts], axis=0),
    )


def _discriminant(sums: _Sums) -> _Linear:
    """Fit linear discriminant analysis over all inputs."""
    seen = sums.counts > 0
    means = sums.totals / np.maximum(sums.counts, 1)[:, None]
    within = sums.products - (means * sums.counts[:, None]).T @ means
    weights = _solve(within / max(sums.counts.sum(), 1), means.T)
    prior = np.log(np.maximum(sums.counts, 1) / sums.counts.sum())
    bias = prior - 0.5 * np.einsum("cd,dc->c", means, weights)
    return _Linear(weights, np.where(seen, bias, -np.inf))


def _sparse(sums: _Sums, width: int) -> _Linear:
    """Fit one discriminant a label, over the inputs that tell it best from the rest."""
    n, d = sums.counts.sum(), sums.products.shape[0]
    everything = sums.totals.sum(axis=0)
    spread = np.sqrt(np.maximum(np.diag(sums.products) / n - (everything / n) ** 2, 1e-12))
    weights, bias = np.zeros((d, len(sums.counts))), np.full(len(sums.counts), -np.inf)
    for label, count in enumerate(sums.counts):
        if not 0 < count < n:
            continue
        inside = sums.totals[label] / count
        outside = (everything - sums.totals[label]) / (n - count)
        best = np.argsort(-np.abs(inside - outside) / spread, kind="stable")[:width]
        means = np.stack([inside[best], outside[best]])
        moments = count * np.outer(means[0], means[0]) + (n - count) * np.outer(means[1], means[1])
        within = (sums.products[np.ix_(best, best)] - moments) / n
        direction = _solve(within, (means[0] - means[1])[:, None])[:, 0]
        weights[best, label] = direction
        bias[label] = np.log(count / (n - count)) - 0.5 * means.sum(axis=0) @ direction
    return _Linear(weights, bias)


def _solve(within: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    ridge = RIDGE * np.trace(within) / len(within) + 1e-12
    solution: NDArray[np.float64] = np.linalg.solve(within + ridge * np.eye(len(within)), right)
    return solution


def _predict(acts: csr_array, rows: NDArray[np.int64], fitted: _Linear) -> NDArray[np.uint8]:
    predicted = np.zeros(len(rows), dtype=np.uint8)
    for at in range(0, len(rows), BLOCK_ROWS):
        scores = acts[rows[at : at + BLOCK_ROWS]] @ fitted.weights + fitted.bias
        predicted[at : at + BLOCK_ROWS] = np.argmax(scores, axis=1)
    return predicted
