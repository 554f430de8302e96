"""Compiled loops of counting: a token stream in compressed rows -> sparse tables of counts.

All counting goes a source feature at a time: its positions are walked, the features of the next
token are added to one row of sums, the row is written out and cleared. Memory is the answer plus a
few rows, whatever d_sae is, and each row is exact. Every loop has a twin in `tests/naive.py`.

Array conventions: `indptr` (n + 1,) and `features` (nnz,) are rows per token; `starts` (d_sae + 1,)
and `pos` (m,) are positions per feature; a table that is filled is `ids` and `sums`, (columns,
capacity) each, and `state` says from where and how far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_F = TypeVar("_F", bound="Callable[..., Any]")

N_PAIRS, N_PROMOTED, NATS, N_LAGGED, N_TOKENS = range(5)


class Stream(NamedTuple):
    """A token stream whose rows are the features that fire."""

    indptr: NDArray[np.int64]
    """(n + 1,) start of each token's features."""

    features: NDArray[np.uint32]
    """(nnz,) feature ids, ascending within a token."""

    run_end: NDArray[np.int64]
    """(n,) one past the last row of the token's window; no transition crosses it."""


class Nexts(NamedTuple):
    """The tokens that follow another one, sorted by token id, then by place in the text."""

    token_ids: NDArray[np.uint32]
    """(m,) their ids, ascending."""

    indptr: NDArray[np.int64]
    """(m + 1,) start of each one's features."""

    features: NDArray[np.uint32]
    """(nnz,) feature ids, ascending within a token."""


class Sources(NamedTuple):
    """The places at which each feature fires, by feature."""

    starts: NDArray[np.int64]
    """(d_sae + 1,) start of each feature's positions."""

    pos: NDArray[np.int32]
    """(m,) rows of the stream, ascending; or rows of Nexts: the tokens that follow the feature."""

    nats: NDArray[np.int64]
    """(m,) nats given to the token that came, fixed point, 0 where not promoted; may be empty."""


def compiled(function: _F) -> _F:
    """Compile a loop, with the machine code cached on disk where a folder for it can be written."""
    return _compiled(function)


def compiled_sum(function: _F) -> _F:
    """Compile a loop whose float sums may be added in any order: several at once."""
    return _compiled(function, fastmath={"reassoc", "contract"})


def _compiled(function: _F, **options: Any) -> _F:
    try:
        return cast("_F", numba.njit(cache=True, nogil=True, **options)(function))
    except RuntimeError:  # no folder for the cache: home and package are read-only
        return cast("_F", numba.njit(nogil=True, **options)(function))


@compiled
def find_run_ends(
    doc_ids: NDArray[np.uint32], window_ids: NDArray[np.uint32], out: NDArray[np.int64]
) -> None:
    """Fill out[p] with one past the last row that has the document and window of row p."""
    n = len(doc_ids)
    end = n
    for p in range(n - 1, -1, -1):
        if p + 1 < n and (doc_ids[p] != doc_ids[p + 1] or window_ids[p] != window_ids[p + 1]):
            end = p + 1
        out[p] = end


@compiled
def add_by_key(keys: NDArray[np.uint32], values: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Add values[k] to out[keys[k]], exactly."""
    for k in range(len(keys)):
        out[keys[k]] += values[k]


@compiled
def max_by_key(
    keys: NDArray[np.uint32], values: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Raise out[keys[k]] to values[k] where that is larger."""
    for k in range(len(keys)):
        out[keys[k]] = max(out[keys[k]], values[k])


@compiled
def scatter_positions(  # noqa: PLR0917 - a compiled loop takes arrays by position
    order: NDArray[np.int64],
    stream: Stream,
    nats: NDArray[np.int64],
    cursor: NDArray[np.int64],
    out_pos: NDArray[np.int32],
    out_nats: NDArray[np.int64],
) -> None:
    """Sort the entries of rows `order` by feature; out_pos is the place in `order`.

    `cursor` (d_sae,) holds the start of each feature, and its end afterwards.
    """
    for k in range(len(order)):
        p = order[k]
        for entry in range(stream.indptr[p], stream.indptr[p + 1]):
            at = cursor[stream.features[entry]]
            out_pos[at] = k
            if len(out_nats):
                out_nats[at] = nats[entry]
            cursor[stream.features[entry]] = at + 1


@compiled
def copy_rows(
    order: NDArray[np.int64],
    stream: Stream,
    out_indptr: NDArray[np.int64],
    out_features: NDArray[np.uint32],
) -> None:
    """Copy the rows `order` (m,) of a stream, so that they lie in memory as they are read."""
    at = 0
    for k in range(len(order)):
        out_indptr[k] = at
        for entry in range(stream.indptr[order[k]], stream.indptr[order[k] + 1]):
            out_features[at] = stream.features[entry]
            at += 1
    out_indptr[len(order)] = at


@compiled
def _add_pairs(
    source: int,
    nexts: Nexts,
    sources: Sources,
    row: NDArray[np.int64],
    last: NDArray[np.int64],
) -> None:
    """Add a source's pairs to row (5, d_sae); last[j] is the token group in which j came last."""
    group = -1
    token = np.int64(-1)
    for k in range(sources.starts[source], sources.starts[source + 1]):
        p = sources.pos[k]
        if nexts.token_ids[p] != token:
            token = np.int64(nexts.token_ids[p])
            group = k
        nats = sources.nats[k]
        for entry in range(nexts.indptr[p], nexts.indptr[p + 1]):
            j = nexts.features[entry]
            row[N_PAIRS, j] += 1
            if nats > 0:
                row[N_PROMOTED, j] += 1
                row[NATS, j] += nats
            if last[j] != group:
                last[j] = group
                row[N_TOKENS, j] += 1


@compiled
def _add_lagged(  # noqa: PLR0917 - a compiled loop takes arrays by position
    begin: int,
    end: int,
    pos: NDArray[np.int32],
    stream: Stream,
    lags: tuple[int, int],
    out: NDArray[np.int64],
) -> None:
    """Add to out[j] the pairs (p, q), j at q, lags[0] <= q - p <= lags[1], p in pos[begin:end].

    The p in reach of q are a sliding range lo..hi; a stretch of q with the same range is added in
    one go.
    """
    lo = hi = begin
    q = np.int64(0)
    while hi < end or lo < hi:
        if lo == hi:
            q = max(q, np.int64(pos[hi]) + lags[0])
        while hi < end and np.int64(pos[hi]) + lags[0] <= q:
            hi += 1
        while lo < hi and (np.int64(pos[lo]) + lags[1] < q or stream.run_end[pos[lo]] <= q):
            lo += 1
        if lo < hi:
            stop = min(np.int64(pos[lo]) + lags[1] + 1, stream.run_end[pos[lo]])
            if hi < end:
                stop = min(stop, np.int64(pos[hi]) + lags[0])
            for entry in range(stream.indptr[q], stream.indptr[stop]):
                out[stream.features[entry]] += hi - lo
            q = stop


@compiled
def count_lagged(
    stream: Stream, lags: tuple[int, int], reach: NDArray[np.int32], out: NDArray[np.int32]
) -> None:
    """Add to out[j, i] the pairs of i at p, j at p + lag, one window, lags[0] <= lag <= lags[1].

    For few features: `reach` (d_sae,), zero before and after, counts each i in reach of the present
    token, and is added whole to the row of each j on it.
    """
    begin = 0
    while begin < len(stream.run_end):
        end = stream.run_end[begin]
        for q in range(begin + lags[0], end):
            for entry in range(stream.indptr[q - lags[0]], stream.indptr[q - lags[0] + 1]):
                reach[stream.features[entry]] += 1
            left = q - lags[1] - 1
            if left >= begin:
                for entry in range(stream.indptr[left], stream.indptr[left + 1]):
                    reach[stream.features[entry]] -= 1
            for entry in range(stream.indptr[q], stream.indptr[q + 1]):
                j = stream.features[entry]
                for i in range(len(reach)):
                    out[j, i] += reach[i]
        reach[:] = 0
        begin = end


@compiled
def _write_row(
    source: int,
    row: NDArray[np.int64],
    state: NDArray[np.int64],
    ids: NDArray[np.uint32],
    sums: NDArray[np.int64],
) -> None:
    """Append the columns of row that have a near or lagged pair to ids and sums; clear row."""
    at = state[1]
    for j in range(row.shape[1]):
        if row[N_PAIRS, j] > 0 or row[N_LAGGED, j] > 0:
            ids[0, at] = source
            ids[1, at] = j
            for k in range(5):
                sums[k, at] = row[k, j]
                row[k, j] = 0
            at += 1
    state[1] = at


@compiled
def fill_transitions(  # noqa: PLR0917 - a compiled loop takes arrays by position
    stream: Stream,
    sources: Sources,
    nexts: Nexts,
    fired: Sources,
    lags: tuple[int, int],
    lagged: NDArray[np.int32],
    state: NDArray[np.int64],
    ids: NDArray[np.uint32],
    sums: NDArray[np.int64],
) -> None:
    """Write (source, target) and (n_pairs, n_promoted, nats, n_lagged, n_tokens), by source, target.

    Goes from source state[0] to before state[2], stops when there is no room for one more row;
    leaves the next source in state[0] and the rows written in state[1]. `fired` holds all positions
    of each feature in text order; it may be empty. `lagged` is what count_lagged gave, or (0, 0) to
    count here.
    """
    d_sae = len(sources.starts) - 1
    row = np.zeros((5, d_sae), dtype=np.int64)
    last = np.full(d_sae, -2, dtype=np.int64)
    state[1] = 0
    while state[0] < state[2] and state[1] + d_sae <= ids.shape[1]:
        source = state[0]
        begin, end = fired.starts[source], fired.starts[source + 1]
        if begin < end or sources.starts[source] < sources.starts[source + 1]:
            _add_pairs(source, nexts, sources, row, last)
            if len(lagged):
                row[N_LAGGED] = lagged[:, source]
            else:
                _add_lagged(begin, end, fired.pos, stream, lags, row[N_LAGGED])
            _write_row(source, row, state, ids, sums)
        state[0] += 1


@compiled
def fill_edge_tokens(  # noqa: PLR0917 - a compiled loop takes arrays by position
    nexts: Nexts,
    sources: Sources,
    row_starts: NDArray[np.int64],
    targets: NDArray[np.uint32],
    token_starts: NDArray[np.int64],
    state: NDArray[np.int64],
    ids: NDArray[np.uint32],
    sums: NDArray[np.int64],
) -> None:
    """Split each transition by the token between: (source, target, token_id), (n_pairs, n_promoted).

    Transition t of source i is row_starts[i] <= t < row_starts[i + 1]; its tokens begin at
    token_starts[t] of the whole table. `state` as in fill_transitions.
    """
    d_sae = len(sources.starts) - 1
    cursor = np.zeros(d_sae, dtype=np.int64)
    last = np.full(d_sae, -2, dtype=np.int64)
    base = token_starts[row_starts[state[0]]]
    while state[0] < state[2] and token_starts[row_starts[state[0] + 1]] - base <= ids.shape[1]:
        source = state[0]
        for t in range(row_starts[source], row_starts[source + 1]):
            cursor[targets[t]] = token_starts[t] - 1 - base
        group = -1
        token = np.int64(-1)
        for k in range(sources.starts[source], sources.starts[source + 1]):
            p = sources.pos[k]
            if nexts.token_ids[p] != token:
                token = np.int64(nexts.token_ids[p])
                group = k
            promoted = 1 if sources.nats[k] > 0 else 0
            for entry in range(nexts.indptr[p], nexts.indptr[p + 1]):
                j = nexts.features[entry]
                if last[j] != group:
                    last[j] = group
                    cursor[j] += 1
                    ids[0, cursor[j]] = source
                    ids[1, cursor[j]] = j
                    ids[2, cursor[j]] = token
                    sums[0, cursor[j]] = 0
                    sums[1, cursor[j]] = 0
                sums[0, cursor[j]] += 1
                sums[1, cursor[j]] += promoted
        state[0] += 1
    state[1] = token_starts[row_starts[state[0]]] - base


@compiled
def fill_coactivation(
    stream: Stream,
    fired: Sources,
    state: NDArray[np.int64],
    ids: NDArray[np.uint32],
    sums: NDArray[np.int64],
) -> None:
    """Write (feature_a, feature_b) and (n_both), a < b, sorted; `state` as in fill_transitions."""
    d_sae = len(fired.starts) - 1
    row = np.zeros(d_sae, dtype=np.int64)
    state[1] = 0
    while state[0] < state[2] and state[1] + d_sae <= ids.shape[1]:
        a = state[0]
        for k in range(fired.starts[a], fired.starts[a + 1]):
            p = fired.pos[k]
            for entry in range(stream.indptr[p], stream.indptr[p + 1]):
                row[stream.features[entry]] += 1
        for b in range(a + 1, d_sae):
            if row[b] > 0:
                ids[0, state[1]] = a
                ids[1, state[1]] = b
                sums[0, state[1]] = row[b]
                state[1] += 1
        row[:] = 0
        state[0] += 1
