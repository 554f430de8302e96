"""A dictionary's hidden layer -> the few features that fire on each token.

1. A slab of tokens is multiplied with the encoder into memory that is used again and again. Of a
   wide dictionary the product is a rough one, where the processor is fast at that (`screening`).
2. A compiled loop adds the bias and keeps what fires: the k largest of each row, or all above a
   floor.
3. Rows are compressed: feature ids ascending, values > 0.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sae_core.row_loops import NOT_A_NUMBER, keep_above, keep_largest
from sae_core.schema import SparseActs
from sae_core.screening import (
    MOST_COMPUTED,
    Rough,
    Screen,
    keep_above_screened,
    keep_largest_screened,
    multiply,
    screen_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

SLAB_ROWS = 2048  # of the hidden layer at once: 32 MB at 4,096 features


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

    screen: Screen | None
    """The same encoder for a rough product first; None where that is not faster."""

    @classmethod
    def of(cls, W_enc: Tensor, b_enc: Tensor, floor: Tensor, k: int | None) -> Encoder:
        """Prepare an encoder."""
        return cls(W_enc, b_enc, floor, k, screen_of(W_enc, b_enc))


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
    screen = encoder.screen
    slab = torch.empty(shape, dtype=torch.bfloat16 if screen else torch.float32)
    rows = _Rows.empty(shape[0], encoder.k or shape[1])
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(n_threads) as pool:
        for first in range(0, len(centred), SLAB_ROWS):
            x = centred[first : first + SLAB_ROWS]
            cuts = np.linspace(0, len(x), n_threads + 1).astype(int).tolist()
            if screen:
                rough = multiply(x, screen, slab[: len(x)])
                keep = partial(_keep_screened, rough, screen, encoder, rows)
                if sum(pool.map(keep, cuts[:-1], cuts[1:])) > MOST_COMPUTED * len(x):
                    screen, slab = None, torch.empty(shape)
            else:
                dense = torch.mm(x, encoder.W_enc, out=slab[: len(x)])
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

    def part(
        self, begin: int, end: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float32]]:
        """Give the room of some of the tokens."""
        return self.counts[begin:end], self.ids[begin:end], self.values[begin:end]

    def joined(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float32]]:
        """Give counts, ids and values of the first n tokens, without gaps."""
        bad = np.flatnonzero(self.counts[:n] == NOT_A_NUMBER)
        self.counts[bad], self.ids[bad, 0], self.values[bad, 0] = 1, 0, np.nan
        counts = self.counts[:n].copy()
        most = int(counts.max(initial=0))
        fires = np.arange(most) < counts[:, None]
        return counts, self.ids[:n, :most][fires], self.values[:n, :most][fires]


def _keep(dense: Tensor, encoder: Encoder, rows: _Rows, begin: int, end: int) -> None:
    part = dense[begin:end].numpy()
    bias, found = encoder.b_enc.numpy(), rows.part(begin, end)
    if encoder.k is None:
        keep_above(part, bias, encoder.floor.numpy(), *found)
    else:
        keep_largest(part, bias, *found)


def _keep_screened(  # noqa: PLR0917 - a part of a loop, called by position
    rough: Rough, screen: Screen, encoder: Encoder, rows: _Rows, begin: int, end: int
) -> int:
    """Fill the rows of some of the tokens; give how many values were computed."""
    part = Rough(rough.bits[begin:end], rough.x[begin:end], rough.x_rough[begin:end])
    given, found = (part, screen.W, screen.bias, screen.sizes), rows.part(begin, end)
    if encoder.k is None:
        return keep_above_screened(*given, encoder.floor.numpy(), *found)
    return keep_largest_screened(*given, *found)
