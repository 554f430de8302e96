"""How often each feature follows each other one: a token stream -> one sparse table, on all cores.

1. Features are ranked by how often they fire. A group of GROUP of them with FIRES_A_TOKEN or more
   is counted by bytes (see `pair_loops`); the features of all other groups are rare.
2. Each thread packs a part of the text: the rare features of each token, and their places.
3. Each group is a job in each direction: from the group to all, and from rare features to it.
4. Long rows of rare sources are counted; of short ones the targets are only told apart, so that the
   sizes of all rows are known.
5. Short rows are counted straight into the table, in ranges of about equal work, and long ones are
   copied.

Each job owns what it writes, so the counts do not depend on the number of threads.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from sae_core import pair_loops
from sae_core.pair_loops import GROUP, Counters, Rare, Sources, Text

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRES_A_TOKEN = 1.5  # of a group that is counted by bytes; below, single pairs are faster
ROW_PAIRS = 4  # a row of d_sae / ROW_PAIRS pairs or more is long
WHOLE_BYTES = 1 << 27  # of the counters of long rows; with more of them they are short ones too
RANGES = 8  # of sources for each core; the last ones to end keep no core waiting for long


class Table(NamedTuple):
    """A sparse table in compressed rows, as scipy takes it."""

    data: NDArray[np.int64]
    """(m,) counts, > 0."""

    indices: NDArray[Any]
    """(m,) targets, ascending in each row."""

    indptr: NDArray[Any]
    """(d_sae + 1,) start of each source's row."""


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
        whole = _whole_rows(rare, len(joined))
        sources = Sources(rare, frequent, to_groups, *whole)
        ranges, sizes = _ranges(rare, len(joined)), np.zeros(d_sae, np.int64)
        _wait([pool.submit(pair_loops.size_rare_sources, *at, sources, sizes) for at in ranges])
        _wait(beside)
        groups = [frequent[at : at + GROUP] for at in range(0, len(frequent), GROUP)]
        for group, counts in zip(groups, from_groups, strict=True):
            sizes[group] = np.count_nonzero(counts, axis=0)[: len(group)]
        table = _room(sizes)
        arrays = table.indptr, table.indices, table.data
        _wait([pool.submit(pair_loops.fill_rare_sources, *at, sources, *arrays) for at in ranges])
        list(pool.map(partial(_fill_group, table), groups, from_groups))
    return sparse.csr_array(table, shape=(d_sae, d_sae))


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


def _row_length(rare: Rare, n_tokens: int) -> float:
    """Give the mean number of rare features of a token, at least 1."""
    return max(1.0, float(rare.starts[-1]) / max(1, n_tokens))


def _whole_rows(rare: Rare, n_tokens: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Give room for the counters of sources with long rows, and which row is whose."""
    n_places = np.diff(rare.starts)
    d_sae = len(n_places)
    small = np.uint16 if n_places.max(initial=0) < 1 << 16 else np.uint32  # no count is larger
    is_long = n_places * _row_length(rare, n_tokens) * ROW_PAIRS > d_sae
    if is_long.sum() * d_sae * np.dtype(small).itemsize > WHOLE_BYTES:
        is_long[:] = False
    whole_at = np.where(is_long, np.cumsum(is_long) - 1, -1)
    return np.zeros((is_long.sum(), d_sae), small), whole_at


def _ranges(rare: Rare, n_tokens: int) -> list[tuple[int, int]]:
    """Cut the sources into ranges of about equal work."""
    n_places = np.diff(rare.starts)
    d_sae = len(n_places)
    length = _row_length(rare, n_tokens)
    work = np.cumsum(n_places * (length + 4) + np.minimum(n_places, 1) * d_sae / 64)
    n_ranges = RANGES * (os.cpu_count() or 1)
    inner = np.searchsorted(work, np.arange(1, n_ranges) / n_ranges * work[-1])
    return list(pairwise([0, *inner.tolist(), d_sae]))


def _room(sizes: NDArray[np.int64]) -> Table:
    """Give a table whose rows have these sizes."""
    n, d_sae = int(sizes.sum()), len(sizes)
    index = np.int32 if max(n, d_sae) < 1 << 31 else np.int64
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(index)
    return Table(np.empty(n, np.int64), np.empty(n, index), indptr)


def _fill_group(table: Table, group: NDArray[np.uint32], counts: NDArray[np.uint32]) -> None:
    """Write the rows of a group of frequent sources."""
    cursor = table.indptr[group].astype(np.int64)
    pair_loops.place_group(counts, cursor, table.indices, table.data)
