"""How often each feature follows each other one: a token stream -> one sparse table, on all cores.

1. Features are ranked by how often they fire. A group of GROUP of them with FIRES_A_TOKEN or more
   is counted by bytes (see `pair_loops`); the features of all other groups are rare.
2. Each thread packs a part of the text: the rare features of each token, and their places.
3. Each group is a job in each direction: from the group to all, and from rare features to it.
4. Rare sources are counted a row at a time, in ranges of about equal work, into pieces.
5. The sizes of all rows are known now: the pieces are copied to their places, and dropped.

Each job owns what it writes, so the counts do not depend on the number of threads.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from sae_core import pair_loops
from sae_core.pair_loops import GROUP, Counters, Rare, Text

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRES_A_TOKEN = 1.5  # of a group that is counted by bytes; below, single pairs are faster
ROW_PAIRS = 4  # a row of d_sae / ROW_PAIRS pairs or more is looked through whole
PIECE = 1 << 22  # entries of a piece; memory of 16 MB, in large pages
RANGES = 8  # of sources for each core; the last ones to end keep no core waiting for long


class Piece(NamedTuple):
    """The rows of some rare sources, one after the other."""

    begin: int
    """The first source."""

    end: int
    """One past the last source."""

    targets: NDArray[np.uint32]
    """(m,) ascending in each row."""

    sums: NDArray[Any]
    """(m,) their counts, > 0."""


def count_pairs(
    indptr: NDArray[np.int64],
    features: NDArray[np.uint32],
    doc_ids: NDArray[np.integer[Any]],
    d_sae: int,
) -> sparse.csr_array:
    """Count the tokens p on which feature i fires while feature j fires on p + 1, same document.

    Args:
        indptr: (n_tokens + 1,) start of each token's features.
        features: (nnz,) features that fire on each token, each once, < d_sae.
        doc_ids: (n_tokens,) document of each token; only neighbours are compared.
        d_sae: number of features.

    Returns:
        (d_sae, d_sae) int64 counts, sorted; row = source, column = target.

    Raises:
        ValueError: there are 2^32 tokens or more.
    """
    if len(doc_ids) >= 1 << 32:  # of the counters on the way
        raise ValueError(f"got {len(doc_ids):,} tokens; count below 2^32 at once and add the sums")
    joined = np.zeros(len(doc_ids), np.bool_)
    joined[:-1] = doc_ids[1:] == doc_ids[:-1]
    n_threads = os.cpu_count() or 1
    at = np.searchsorted(indptr, np.linspace(0, len(features), n_threads + 1)[1:-1])
    cuts = [0, *at.tolist(), len(joined)]
    with ThreadPoolExecutor(n_threads) as pool:
        n_fires = _firings(pool, indptr, features, cuts, d_sae)
        text, frequent = _ranked(indptr, features, joined, n_fires.sum(0))
        rare = _packed(pool, text, cuts, n_fires, len(frequent))
        shape = (-(-len(frequent) // GROUP), d_sae, GROUP)
        to_groups, from_groups = (np.zeros(shape, np.uint32) for _ in range(2))
        before = [
            pool.submit(pair_loops.count_to_group, text, k, rare, _counters(counts))
            for k, counts in enumerate(to_groups)
        ]
        beside = [
            pool.submit(pair_loops.count_from_group, text, k, _counters(counts))
            for k, counts in enumerate(from_groups)
        ]
        _wait(before)
        pieces, sizes = _rare_rows(pool, rare, frequent, to_groups, len(joined))
        _wait(beside)
        return _placed(pool, rare, frequent, from_groups, pieces, sizes)


def _wait(jobs: list[Future[None]]) -> None:
    """Wait for jobs; an error of one is raised here."""
    for job in jobs:
        job.result()


def _firings(
    pool: ThreadPoolExecutor,
    indptr: NDArray[np.int64],
    features: NDArray[np.uint32],
    cuts: list[int],
    d_sae: int,
) -> NDArray[np.int64]:
    """Give (n_threads, d_sae): how often each feature fires in each part of the text."""
    out = np.zeros((len(cuts) - 1, d_sae), np.int64)
    parts = [features[indptr[a] : indptr[b]] for a, b in pairwise(cuts)]
    list(pool.map(pair_loops.count_firings, parts, out))
    return out


def _ranked(
    indptr: NDArray[np.int64],
    features: NDArray[np.uint32],
    joined: NDArray[np.bool_],
    n_fires: NDArray[np.int64],
) -> tuple[Text, NDArray[np.uint32]]:
    """Give the text with the rank of each feature, and the frequent ones."""
    order = np.argsort(-n_fires, kind="stable").astype(np.uint32)
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    groups = np.add.reduceat(n_fires[order], np.arange(0, len(order), GROUP))
    n_groups = int((groups >= max(1, FIRES_A_TOKEN * len(joined))).sum())
    return Text(indptr, features, joined, rank), order[: n_groups * GROUP]


def _packed(
    pool: ThreadPoolExecutor,
    text: Text,
    cuts: list[int],
    n_fires: NDArray[np.int64],
    n_frequent: int,
) -> Rare:
    """Sort out the rare features, each thread those of one part of the text."""
    d_sae = len(text.rank)
    n_fires = np.where(text.rank < n_frequent, 0, n_fires)
    rows_at = 1 + np.concatenate([[0], np.cumsum(n_fires.sum(1) + np.diff(cuts))])
    starts = np.concatenate([[0], np.cumsum(n_fires.sum(0))])
    small = np.uint16 if d_sae <= 1 << 16 else np.uint32
    place = np.uint32 if rows_at[-1] < 1 << 32 else np.int64
    rare = Rare(np.empty(rows_at[-1], small), starts, np.empty(starts[-1], place))
    rare.rows[0] = 0
    cursors = starts[:-1] + np.cumsum(n_fires, axis=0) - n_fires

    def pack(k: int) -> None:
        at = int(rows_at[k])
        pair_loops.pack_rare(text, cuts[k], cuts[k + 1], n_frequent, at, cursors[k], rare)

    list(pool.map(pack, range(len(cursors))))
    return rare


def _counters(counts: NDArray[np.uint32]) -> Counters:
    marks = np.zeros((GROUP, GROUP + 1), np.uint8)
    return Counters(
        marks, np.zeros(counts.shape, np.uint8), np.zeros(len(counts), np.uint8), counts
    )


def _rare_rows(
    pool: ThreadPoolExecutor,
    rare: Rare,
    frequent: NDArray[np.uint32],
    to_groups: NDArray[np.uint32],
    n_tokens: int,
) -> tuple[list[Piece], NDArray[np.int64]]:
    """Count the rows of rare sources; give them in pieces, and the size of each row."""
    d_sae = len(rare.starts) - 1
    n_places = np.diff(rare.starts)
    row_length = max(1.0, rare.starts[-1] / max(1, n_tokens))
    n_for_all = int(d_sae / ROW_PAIRS / row_length) + 1
    sizes = np.zeros(d_sae, np.int64)
    small = np.uint16 if n_places.max(initial=0) < 1 << 16 else np.uint32  # no count is larger

    def count(begin: int, end: int) -> list[Piece]:
        state, pieces = np.array([begin, 0, end]), []
        while state[0] < end:
            first, most = int(state[0]), int(end - state[0]) * d_sae
            size = min(max(PIECE, d_sae), most) + 1
            targets, sums = np.empty(size, np.uint32), np.empty(size, small)
            pair_loops.fill_rare_sources(
                rare, frequent, to_groups, n_for_all, state, sizes, targets, sums
            )
            n = int(state[1])
            pieces.append(Piece(first, int(state[0]), targets[:n], sums[:n]))
        return pieces

    work = np.cumsum(n_places * (row_length + 4) + np.minimum(n_places, 1) * d_sae / 64)
    n_ranges = RANGES * (os.cpu_count() or 1)
    inner = np.searchsorted(work, np.arange(1, n_ranges) / n_ranges * work[-1])
    edges = [0, *inner.tolist(), d_sae]
    found = pool.map(count, edges[:-1], edges[1:])
    return [piece for pieces in found for piece in pieces], sizes


def _placed(  # noqa: PLR0917 - the one place where all parts meet
    pool: ThreadPoolExecutor,
    rare: Rare,
    frequent: NDArray[np.uint32],
    from_groups: NDArray[np.uint32],
    pieces: list[Piece],
    sizes: NDArray[np.int64],
) -> sparse.csr_array:
    """Join the rows of all sources to one table; a piece is dropped when it is copied."""
    d_sae = len(sizes)
    groups = [frequent[at : at + GROUP] for at in range(0, len(frequent), GROUP)]
    found = np.zeros((len(groups), GROUP), np.int64)
    list(pool.map(pair_loops.count_targets, from_groups, found))
    sizes[frequent] = found.ravel()[: len(frequent)]
    n = int(sizes.sum())
    index = np.int32 if max(n, d_sae) < 1 << 31 else np.int64
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(index)
    indices, data = np.empty(n, index), np.empty(n, np.int64)

    def place_group(counts: NDArray[np.uint32], group: NDArray[np.uint32]) -> None:
        pair_loops.place_group(counts, indptr[group].astype(np.int64), indices, data)

    def place_piece(k: int) -> None:
        begin, end, targets, sums = pieces[k]
        pieces[k] = Piece(begin, end, targets[:0].copy(), sums[:0].copy())
        pair_loops.place_rows(begin, end, rare.starts, indptr, targets, sums, indices, data)

    list(pool.map(place_piece, range(len(pieces))))
    list(pool.map(place_group, from_groups, groups))
    return sparse.csr_array((data, indices, indptr), shape=(d_sae, d_sae))
