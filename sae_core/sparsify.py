"""A dictionary's hidden layer -> the few features that fire on each token.

1. A slab of tokens is multiplied with the encoder into memory that is used again and again.
2. A compiled loop adds the bias and keeps what fires: the k largest of each row, or all above a
   floor. It looks at most values once, in blocks, and only stops where one is large enough.
3. Rows are compressed: feature ids ascending, values > 0.

Every loop has a twin in `tests/naive.py`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sae_core.kernels import compiled
from sae_core.schema import SparseActs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

SLAB_ROWS = 2048  # of the hidden layer at once: 32 MB at 4,096 features
BLOCK = 64  # values compared at once with the least that is kept
NOT_A_NUMBER = -1


class Encoder(NamedTuple):
    """The map from centred activations to the hidden layer, and what fires there."""

    W_enc: Tensor
    """(d_in, d_sae)."""

    b_enc: Tensor
    """(d_sae,) added to the product."""

    floor: Tensor
    """(d_sae,) >= 0; a feature fires above it."""

    k: int | None
    """Features kept a token; None keeps all that fire."""


def sparse_acts(centred: Tensor, encoder: Encoder) -> SparseActs:
    """Give the features that fire on each token.

    Args:
        centred: (n_tokens, d_in) float32 on the CPU, b_dec already taken off.
        encoder: the dictionary's half that reads.

    Returns:
        CSR rows, feature ids ascending, values > 0; of equal values the lowest ids are kept. A
        token with a value that is not a number has one entry, feature 0 with NaN, so that it shows.
    """
    parts = list(_slabs(centred, encoder))
    counts = np.concatenate([np.empty(0, np.int64), *(part[0] for part in parts)])
    indptr = np.zeros(len(centred) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    ids = np.concatenate([np.empty(0, np.uint32), *(part[1] for part in parts)])
    values = np.concatenate([np.empty(0, np.float32), *(part[2] for part in parts)])
    return SparseActs(indptr, ids, values)


def top_k_mask(acts: Tensor, k: int) -> Tensor:
    """Mark the k largest positive values of each row; equal values go to the lowest feature id.

    Args:
        acts: (..., d_sae) values >= 0.
        k: values to keep, 1 <= k <= d_sae.

    Returns:
        (..., d_sae) bool.

    Example:
        >>> top_k_mask(torch.tensor([[3.0, 1.0, 3.0, 3.0, 0.0]]), 2).tolist()
        [[True, False, True, False, False]]
    """
    rows = acts.reshape(-1, acts.shape[-1])
    kth = rows.topk(k, dim=-1, sorted=True).values[:, -1:]  # (n, 1)
    mask = (rows >= kth) & (rows > 0)
    tied = mask.sum(dim=-1) > k
    if bool(tied.any()):
        above = rows[tied] > kth[tied]
        equal = rows[tied] == kth[tied]
        room = k - above.sum(dim=-1, keepdim=True)
        mask[tied] = above | (equal & (equal.cumsum(dim=-1) <= room))
    return mask.view(acts.shape)


def to_sparse(acts: Tensor) -> SparseActs:
    """Compress dense activations by token.

    Args:
        acts: (n_tokens, d_sae) >= 0.

    Returns:
        CSR rows, feature ids ascending, only values > 0.

    Example:
        >>> to_sparse(torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 3.0]])).indices.tolist()
        [1, 0, 1]
    """
    dense = acts.detach().cpu().numpy()
    token, feature = np.nonzero(dense > 0)
    indptr = np.zeros(len(dense) + 1, np.int64)
    np.cumsum(np.bincount(token, minlength=len(dense)), out=indptr[1:])
    return SparseActs(indptr, feature.astype(np.uint32), dense[token, feature].astype(np.float32))


def _slabs(
    centred: Tensor, encoder: Encoder
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float32]]]:
    """Give (features a token, feature ids, values) of a slab of tokens at a time."""
    shape = (min(SLAB_ROWS, len(centred)), encoder.W_enc.shape[1])
    slab, rows = torch.empty(shape), _Rows.empty(shape[0], encoder.k or shape[1])
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(n_threads) as pool:
        for first in range(0, len(centred), SLAB_ROWS):
            x = centred[first : first + SLAB_ROWS]
            dense = torch.mm(x, encoder.W_enc, out=slab[: len(x)]).numpy()
            cuts = np.linspace(0, len(x), n_threads + 1).astype(int).tolist()
            list(pool.map(partial(_keep, dense, encoder, rows), cuts[:-1], cuts[1:]))
            yield rows.joined(len(x))


class _Rows(NamedTuple):
    """Room for what is kept of a slab."""

    counts: NDArray[np.int64]
    """(n,) features kept of each token; -1 where a value was not a number."""

    ids: NDArray[np.uint32]
    """(n, most) their ids."""

    values: NDArray[np.float32]
    """(n, most) their values."""

    @staticmethod
    def empty(n: int, most: int) -> _Rows:
        """Make room for n tokens."""
        ids, values = np.empty((n, most), np.uint32), np.empty((n, most), np.float32)
        return _Rows(np.empty(n, np.int64), ids, values)

    def joined(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float32]]:
        """Give counts, ids and values of the first n tokens, without gaps."""
        bad = np.flatnonzero(self.counts[:n] == NOT_A_NUMBER)
        self.counts[bad], self.ids[bad, 0], self.values[bad, 0] = 1, 0, np.nan
        counts = self.counts[:n].copy()
        most = int(counts.max(initial=0))
        fires = np.arange(most) < counts[:, None]
        return counts, self.ids[:n, :most][fires], self.values[:n, :most][fires]


def _keep(dense: NDArray[np.float32], encoder: Encoder, rows: _Rows, begin: int, end: int) -> None:
    part = slice(begin, end)
    found = rows.counts[part], rows.ids[part], rows.values[part]
    if encoder.k is None:
        keep_above(dense[part], encoder.b_enc.numpy(), encoder.floor.numpy(), *found)
    else:
        keep_largest(dense[part], encoder.b_enc.numpy(), *found)


@compiled
def keep_largest(
    dense: NDArray[np.float32],
    bias: NDArray[np.float32],
    counts: NDArray[np.int64],
    ids: NDArray[np.uint32],
    values: NDArray[np.float32],
) -> None:
    """Fill rows of ids and values (n, k) with the k largest of dense + bias that are above 0.

    Ids ascend; of equal values the lowest are kept. counts[row] says how many, or -1 where a value
    is not a number.
    """
    for row in range(len(dense)):
        counts[row] = _largest(dense[row], bias, ids[row], values[row])
        _sort_by_id(counts[row], ids[row], values[row])


@compiled
def _largest(
    dense: NDArray[np.float32],
    bias: NDArray[np.float32],
    ids: NDArray[np.uint32],
    values: NDArray[np.float32],
) -> int:
    """Fill ids and values (k,) with the k largest above 0, in falling order; give how many.

    Only a block with a value that is not <= the least of k is looked at twice. Gives -1 where a
    value is not a number.
    """
    k = len(ids)
    n = 0
    least = np.float32(0)
    is_number = True
    for first in range(0, len(dense), BLOCK):
        block, added = dense[first : first + BLOCK], bias[first : first + BLOCK]
        n_above = 0
        for j in range(len(block)):
            n_above += not block[j] + added[j] <= least
        if n_above > 0:
            for j in range(len(block)):
                value = block[j] + added[j]
                if value > least:
                    _insert(n, first + j, value, ids, values)
                    n = min(n + 1, k)
                    if n == k:
                        least = values[k - 1]
                elif not value <= least:
                    is_number = False
    return n if is_number else NOT_A_NUMBER


@compiled
def keep_above(  # noqa: PLR0917 - a compiled loop takes arrays by position
    dense: NDArray[np.float32],
    bias: NDArray[np.float32],
    floor: NDArray[np.float32],
    counts: NDArray[np.int64],
    ids: NDArray[np.uint32],
    values: NDArray[np.float32],
) -> None:
    """Fill rows of ids and values (n, d_sae) with all of dense + bias that are above floor >= 0.

    counts[row] says how many, or -1 where a value is not a number.
    """
    for row in range(len(dense)):
        n = 0
        is_number = True
        for first in range(0, dense.shape[1], BLOCK):
            block, added = dense[row, first : first + BLOCK], bias[first : first + BLOCK]
            least = floor[first : first + BLOCK]
            n_above = 0
            for j in range(len(block)):
                n_above += not block[j] + added[j] <= least[j]
            if n_above > 0:
                for j in range(len(block)):
                    value = block[j] + added[j]
                    if value > least[j]:
                        ids[row, n] = first + j
                        values[row, n] = value
                        n += 1
                    elif not value <= least[j]:
                        is_number = False
        counts[row] = n if is_number else NOT_A_NUMBER


@compiled
def _insert(
    n: int, j: int, value: float, ids: NDArray[np.uint32], values: NDArray[np.float32]
) -> None:
    """Put (j, value) among the n best, in falling order of value; the last of a full row falls out."""
    at = min(n, len(ids) - 1)
    while at > 0 and values[at - 1] < value:
        values[at] = values[at - 1]
        ids[at] = ids[at - 1]
        at -= 1
    values[at] = value
    ids[at] = j


@compiled
def _sort_by_id(n: int, ids: NDArray[np.uint32], values: NDArray[np.float32]) -> None:
    """Sort the first n entries by id, by insertion: n is small."""
    for k in range(1, n):
        j, value = ids[k], values[k]
        at = k
        while at > 0 and ids[at - 1] > j:
            ids[at] = ids[at - 1]
            values[at] = values[at - 1]
            at -= 1
        ids[at] = j
        values[at] = value
