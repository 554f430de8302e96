"""Compiled loops of the sparse trainer: only features that fire cost anything.

1. Forward, a row of the batch at a time: the features that fire add their decoder rows up to the
   reconstruction; what it misses, times each of those decoder rows, is their gradient.
2. Backward, a feature at a time: the rows on which it fires add up to the gradients of its encoder
   and decoder weights, which stay in the cache until Adam has moved them. No table of gradients is
   ever written.

Arrays: `indptr` (n + 1,), `ids` (m,) and `acts` (m,) are rows of active features, ids ascending.
Every loop has a twin: `sae_core.sparse_engine.TorchEngine` does the same with tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sae_core.kernels import compiled, compiled_sum
from sae_core.screen_loops import dot, round_row

if TYPE_CHECKING:
    from numpy.typing import NDArray

EPSILON = 1e-8  # of Adam


class Weights(NamedTuple):
    """A dictionary in training, a feature's weights side by side; all float32."""

    enc: NDArray[np.float32]
    """(d_sae, d_in) encoder."""

    b_enc: NDArray[np.float32]
    """(d_sae,)."""

    dec: NDArray[np.float32]
    """(d_sae, d_in) decoder; rows of unit norm."""


class Entries(NamedTuple):
    """The places at which features fire, sorted by feature."""

    starts: NDArray[np.int64]
    """(d_sae + 1,) start of each feature's places."""

    row: NDArray[np.int32]
    """(m,) row of the batch."""

    miss: NDArray[np.int32]
    """(m,) row of what the reconstruction misses."""

    act: NDArray[np.float32]
    """(m,) activation."""

    slope: NDArray[np.float32]
    """(m,) derivative of the loss by the activation."""


class Rates(NamedTuple):
    """Adam's numbers of one step."""

    lr: float
    """Learning rate."""

    keep_m: float
    """beta 1."""

    keep_v: float
    """beta 2."""

    scale: float
    """What gradients are multiplied with."""

    step: int
    """Of the training, from 1."""


@compiled_sum
def centre(  # noqa: PLR0917 - a compiled loop takes arrays by position
    begin: int,
    end: int,
    x: NDArray[np.float32],
    scale: float,
    b_dec: NDArray[np.float32],
    centred: NDArray[np.float32],
    sums: NDArray[np.float64],
) -> None:
    """Fill rows begin .. end of centred = scale x - b_dec; sums (d_in,) gets its sums.

    The last place of sums (d_in + 1,) gets the sum of squares.
    """
    d_in, factor = x.shape[1], np.float32(scale)
    columns, squares = np.zeros(d_in, np.float32), np.float64(0)
    for row in range(begin, end):
        to = centred[row]
        for at in range(d_in):
            to[at] = x[row, at] * factor - b_dec[at]
        for at in range(d_in):
            columns[at] += to[at]
        squares += np.float64(dot(to, to))
    sums[:d_in] = columns
    sums[d_in] = squares


@compiled_sum
def reconstruct(  # noqa: PLR0917 - a compiled loop takes arrays by position
    begin: int,
    end: int,
    indptr: NDArray[np.int64],
    ids: NDArray[np.uint32],
    acts: NDArray[np.float32],
    ends: NDArray[np.int64],
    dec: NDArray[np.float32],
    x: NDArray[np.float32],
    miss: NDArray[np.float32],
    errors: NDArray[np.float32],
    slopes: NDArray[np.float32],
) -> None:
    """Fill what reconstructions of rows begin .. end miss, and the slopes of their features.

    Level l reconstructs x (n, d_in) with the features below ends[l]; miss (levels, n, d_in) gets the
    sum of reconstruction - x over levels l and above, errors (levels, n) the squares of each alone,
    slopes (m,) half the derivative of all levels' squares by each activation.
    """
    n_levels = len(ends)
    for row in range(begin, end):
        made = miss[0, row]
        made[:] = -x[row]
        level = 0
        for at in range(indptr[row], indptr[row + 1]):
            while ids[at] >= ends[level]:
                level += 1
                miss[level, row] = miss[level - 1, row]
                made = miss[level, row]
            _add(acts[at], dec[ids[at]], made)
        while level < n_levels - 1:
            level += 1
            miss[level, row] = miss[level - 1, row]
        for level in range(n_levels - 1, -1, -1):
            errors[level, row] = dot(miss[level, row], miss[level, row])
            if level < n_levels - 1:
                _add(np.float32(1), miss[level + 1, row], miss[level, row])
        level = 0
        for at in range(indptr[row], indptr[row + 1]):
            while ids[at] >= ends[level]:
                level += 1
            slopes[at] = dot(miss[level, row], dec[ids[at]])


@compiled
def move(  # noqa: PLR0917 - a compiled loop takes arrays by position
    begin: int,
    end: int,
    entries: Entries,
    x: NDArray[np.float32],
    miss: NDArray[np.float32],
    weights: Weights,
    m: Weights,
    v: Weights,
    n_moves: NDArray[np.int64],
    rates: Rates,
    rough: NDArray[np.uint16],
    sizes: NDArray[np.float32],
) -> None:
    """Let Adam move the weights of features begin .. end, and keep decoder rows at unit norm.

    A feature that fires on no row stays as it is, moments too; n_moves (d_sae,) counts its own
    steps. rough and sizes of the encoder follow.
    """
    d_in = x.shape[1]
    to_enc, to_dec = np.empty(d_in, np.float32), np.empty(d_in, np.float32)
    for j in range(begin, end):
        first, after = entries.starts[j], entries.starts[j + 1]
        if first == after:
            continue
        to_enc[:] = 0
        to_dec[:] = 0
        to_bias = np.float32(0)
        for at in range(first, after):
            _add(entries.slope[at], x[entries.row[at]], to_enc)
            _add(entries.act[at], miss[entries.miss[at]], to_dec)
            to_bias += entries.slope[at]
        n_moves[j] += 1
        n = n_moves[j]
        dec = weights.dec[j]
        _add(-dot(to_dec, dec), dec, to_dec)
        _adam(n, to_dec, dec, m.dec[j], v.dec[j], rates)
        dec *= np.float32(1) / max(np.sqrt(dot(dec, dec)), np.float32(1e-12))
        _adam(n, to_enc, weights.enc[j], m.enc[j], v.enc[j], rates)
        to_enc[0] = to_bias
        one = slice(j, j + 1)
        _adam(n, to_enc[:1], weights.b_enc[one], m.b_enc[one], v.b_enc[one], rates)
        if len(rough) > 0:
            round_row(weights.enc[j], rough[j], sizes[:, j])


@compiled
def _add(factor: np.float32, row: NDArray[np.float32], to: NDArray[np.float32]) -> None:
    for at in range(len(to)):
        to[at] += factor * row[at]


@compiled
def _adam(  # noqa: PLR0917 - a compiled loop takes arrays by position
    n: int,
    grad: NDArray[np.float32],
    w: NDArray[np.float32],
    m: NDArray[np.float32],
    v: NDArray[np.float32],
    rates: Rates,
) -> None:
    keep_m, keep_v = np.float32(rates.keep_m), np.float32(rates.keep_v)
    new_m, new_v = np.float32(1) - keep_m, np.float32(1) - keep_v
    lr = np.float32(rates.lr / (1 - rates.keep_m**n))
    fix_v = np.float32(1 / (1 - rates.keep_v**n))
    scale, least = np.float32(rates.scale), np.float32(EPSILON)
    for at in range(len(w)):
        slope = scale * grad[at]
        m[at] = keep_m * m[at] + new_m * slope
        v[at] = keep_v * v[at] + new_v * slope * slope
        w[at] -= lr * m[at] / (np.sqrt(v[at] * fix_v) + least)
