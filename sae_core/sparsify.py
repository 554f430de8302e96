"""A dictionary's hidden layer -> the few features that fire on each token.

1. A slab of tokens is multiplied with the encoder into memory that is used again and again. Of a
   wide dictionary the product is a rough one, where the processor is fast at that (`screening`).
2. A compiled loop adds the bias and keeps what fires: the k largest of each row, or all above a
   floor.
3. Rows are compressed: feature ids ascending, values > 0.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch

from sae_core.row_loops import NOT_A_NUMBER, keep_above, keep_largest
from sae_core.schema import SparseActs
from sae_core.screen_loops import keep_above_screened, keep_largest_screened
from sae_core.screening import MOST_COMPUTED, Screen, multiply, screen_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

Made = TypeVar("Made")
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


class Room:
    """Memory and threads for calls of `sparse_acts`, one at a time; shared, they are made once."""

    def __init__(self) -> None:
        self.n_threads = torch.get_num_threads()
        self._pool, self._owner = _pool(self.n_threads), os.getpid()
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._rows = _Rows.empty(0, 0)

    def slab(self, n: int, d_sae: int, dtype: torch.dtype) -> Tensor:
        """Give (n, d_sae) of that type, with anything in it."""
        n_bytes = n * d_sae * dtype.itemsize
        if len(self._slab) < n_bytes:
            self._slab = torch.empty(n_bytes, dtype=torch.uint8)
        return self._slab[:n_bytes].view(dtype).view(n, d_sae)

    def rows(self, n: int, most: int) -> _Rows:
        """Give room for what is kept of n tokens, `most` features each."""
        if self._rows.ids.shape != (n, most):
            self._rows = _Rows.empty(n, most)
        return self._rows

    def map(self, task: Callable[[int, int], Made], cuts: Sequence[int]) -> list[Made]:
        """Run a task from each cut to the next, a thread each."""

        def run(begin: int, end: int) -> Made:
            with torch.inference_mode():  # as perhaps here; a thread does not take it over
                return task(begin, end)

        if self._owner != os.getpid():  # a fork takes memory along, but no threads
            self._pool, self._owner = _pool(self.n_threads), os.getpid()
        return list(self._pool.map(run, cuts[:-1], cuts[1:]))


def sparse_acts(centred: Tensor, encoder: Encoder, room: Room | None = None) -> SparseActs:
    """Give the features that fire on each token.

    Args:
        centred: (n_tokens, d_in) float32 on the CPU, b_dec already taken off.
        encoder: the dictionary's half that reads.
        room: what earlier calls used; None makes it anew.

    Returns:
        CSR rows, feature ids ascending, values > 0; of equal values the lowest ids are kept. A
        token with a value that is not a number has one entry, feature 0 with NaN, so that it shows.
    """
    parts = list(_slabs(centred, encoder, room or Room()))
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
    centred: Tensor, encoder: Encoder, room: Room
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float32]]]:
    """Give (features a token, feature ids, values) of a slab of tokens at a time."""
    d_sae, screen = encoder.W_enc.shape[1], encoder.screen
    rows = room.rows(min(SLAB_ROWS, len(centred)), encoder.k or d_sae)
    for first in range(0, len(centred), SLAB_ROWS):
        x = centred[first : first + SLAB_ROWS]
        cuts = np.linspace(0, len(x), room.n_threads + 1).astype(int).tolist()
        if screen:
            slab = room.slab(len(x), d_sae, torch.bfloat16)
            keep = partial(_keep_screened, x, screen, encoder, slab, rows)
            if sum(room.map(keep, cuts)) > MOST_COMPUTED * len(x):
                screen = None
        else:
            slab = room.slab(len(x), d_sae, torch.float32)
            room.map(partial(_keep, x, encoder, slab, rows), cuts)
        yield rows.joined(len(x))


def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Start threads in which torch does not start more: those of two parts would fight for cores."""
    started = Barrier(n_threads + 1)
    pool = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for _ in range(n_threads):
            pool.submit(started.wait)
    except RuntimeError:  # no thread more: those that started would wait for it forever
        started.abort()
        raise
    started.wait()
    torch.set_num_threads(n_threads)  # of this thread, and of those to come
    return pool


def _keep(  # noqa: PLR0917 - a part of a loop, called by position
    x: Tensor, encoder: Encoder, slab: Tensor, rows: _Rows, begin: int, end: int
) -> None:
    dense = torch.mm(x[begin:end], encoder.W_enc, out=slab[begin:end]).numpy()
    bias, found = encoder.b_enc.numpy(), rows.part(begin, end)
    if encoder.k is None:
        keep_above(dense, bias, encoder.floor.numpy(), *found)
    else:
        keep_largest(dense, bias, *found)


def _keep_screened(  # noqa: PLR0917 - a part of a loop, called by position
    x: Tensor, screen: Screen, encoder: Encoder, slab: Tensor, rows: _Rows, begin: int, end: int
) -> int:
    """Fill the rows of some of the tokens; give how many values were computed."""
    rough = multiply(x[begin:end], screen, slab[begin:end])
    given, found = (rough, screen.W, screen.bias, screen.sizes), rows.part(begin, end)
    if encoder.k is None:
        return keep_above_screened(*given, encoder.floor.numpy(), *found)
    return keep_largest_screened(*given, *found)
