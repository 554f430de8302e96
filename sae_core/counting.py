"""One block of tokens -> exact counts: checks and allocation around the loops of `kernels`."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sae_core import kernels, token_loops
from sae_core.errors import StoreError
from sae_core.kernels import Nexts, Sources, Stream
from sae_core.pair_counts import count_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from scipy import sparse

    from sae_core.schema import TokenTable

BLOCK_ENTRIES = 1 << 24  # features of one block; bounds the working memory to about 1 GB
BLOCK_TOKENS = 1 << 26  # of one block, also where nothing fires on most of them
MOST = float(1 << 43)  # activations and nats below have room in 64 bits of fixed point
DENSE_FEATURES = 1024  # up to here a square of counters stays in the cache and is fastest
BUFFER_ROWS = 1 << 20  # rows of a table that are filled in one go; columns of 4 MB get large pages
RANGES = 8  # of sources for each core; those of frequent features take longer than others


def transition_counts(
    indptr: NDArray[np.integer[Any]],
    indices: NDArray[np.integer[Any]],
    doc_ids: NDArray[np.integer[Any]],
    d_sae: int,
    *,
    device: str = "cpu",
) -> sparse.csr_array:
    """Count the tokens p on which feature i fires while feature j fires on p + 1, same document.

    Args:
        indptr: (n_tokens + 1,) start of each token's features.
        indices: (nnz,) features that fire on each token, each once.
        doc_ids: (n_tokens,) document of each token; no pair crosses a document.
        d_sae: number of features.
        device: `cpu`, `cuda` or `cuda:N`; the counts are equal.

    Returns:
        (d_sae, d_sae) int64 counts; row = source (earlier), column = target (later).

    Raises:
        ValueError: the arrays do not fit each other, or an index is not in 0..d_sae - 1.
        ModelError: there is no such GPU.

    Example:
        >>> counts = transition_counts(
        ...     np.array([0, 1, 2, 3]), np.array([0, 1, 1]), np.array([0, 0, 0]), 2
        ... )
        >>> counts.toarray().tolist()
        [[0, 1], [0, 1]]
    """
    indptr, indices, doc_ids = np.asarray(indptr), np.asarray(indices), np.asarray(doc_ids)
    _check_rows(indptr, indices, doc_ids, d_sae)
    features = np.ascontiguousarray(indices, np.uint32)
    if device != "cpu":
        from sae_core import device_counts  # noqa: PLC0415 - torch is slow to load

        return device_counts.count_pairs(indptr, features, doc_ids, d_sae, device)
    return count_pairs(indptr.astype(np.int64), features, doc_ids, d_sae)


def has_square(d_sae: int) -> bool:
    """Say whether lagged pairs are counted in a square of counters, and not a source at a time."""
    return d_sae <= DENSE_FEATURES


def find_blocks(tokens: TokenTable, n_entries: int | None = None) -> list[slice]:
    """Cut a stream at window ends into blocks of about n_entries (BLOCK_ENTRIES) features at most."""
    n_entries = BLOCK_ENTRIES if n_entries is None else n_entries
    n = len(tokens.doc_ids)
    new_run = np.diff(tokens.doc_ids) | np.diff(tokens.window_ids)
    cuts = np.append(np.flatnonzero(new_run) + 1, n)
    blocks, start = [], 0
    while start < n:
        most = tokens.indptr[start] + n_entries
        limit = np.searchsorted(tokens.indptr, most, side="right")
        limit = min(limit, start + BLOCK_TOKENS + 1)
        first = np.searchsorted(cuts, start, side="right")
        fits = np.searchsorted(cuts, limit - 1, side="right") - 1
        stop = int(cuts[max(first, fits)])
        blocks.append(slice(start, stop))
        start = stop
    return blocks or [slice(0, 0)]


def count_block(
    tokens: TokenTable,
    block: slice,
    *,
    d_sae: int,
    d_vocab: int,
    lags: tuple[int, int],
    threshold: float,
    unit: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Count one block of a stream that starts and ends at window ends.

    Args:
        tokens: the whole stream.
        block: its rows to count, at least one.
        d_sae: number of features.
        d_vocab: number of vocabulary entries.
        lags: least and greatest distance, in tokens, of the lagged pairs.
        threshold: nats above which a feature promotes the next token.
        unit: fixed-point steps in one nat and in one unit of activation.
        device: `cpu`, `cuda` or `cuda:N`; the counts are equal.

    Returns:
        The fields of `statistics.Statistics`.

    Raises:
        StoreError: see `statistics.collect`.
    """
    stream, token_ids, acts, promotions = _cut(tokens, block)
    _check_block(tokens, block, d_sae, d_vocab)
    nats = _fixed(promotions, unit)
    nats[promotions <= threshold] = 0
    everywhere = np.arange(len(token_ids))
    sources_at = _with_successor(stream)
    fired = _sorted_positions(stream, np.empty(0, np.int64), everywhere, d_sae)
    order = sources_at[np.argsort(token_ids[sources_at + 1], kind="stable")]
    sources = _sorted_positions(stream, nats, order, d_sae)
    nexts = _nexts(stream, token_ids, order)
    if device == "cpu":
        tables = _pair_tables(stream, sources, nexts, fired, lags)
    else:
        from sae_core import device_counts  # noqa: PLC0415 - torch is slow to load

        tables = device_counts.pair_tables(
            stream, token_ids, nats, lags, sizes=(d_sae, d_vocab), device=device
        )
    return {
        "n_tokens": len(token_ids),
        "n_pairs": len(sources_at),
        "n_lag_pairs": _lag_pairs(stream.run_end, lags),
        "token_counts": np.bincount(token_ids, minlength=d_vocab).astype(np.int64),
        **_per_feature(stream, acts, sources, fired, unit=unit),
        **tables,
        "promoted_tokens": _promoted_tokens(sources, nexts),
        "token_features": _token_features(stream, token_ids, d_sae),
    }


def _check_rows(indptr: Any, indices: Any, doc_ids: Any, d_sae: int) -> None:
    if len(indptr) != len(doc_ids) + 1 or indptr[0] != 0 or indptr[-1] != len(indices):
        raise ValueError(
            f"indptr must have one entry more than the {len(doc_ids)} doc_ids, start at 0 and end "
            f"at {len(indices)}; got {len(indptr)} entries"
        )
    if (np.diff(indptr) < 0).any():
        raise ValueError("indptr must not decrease")
    if len(indices) and not 0 <= indices.min() <= indices.max() < d_sae:
        raise ValueError(f"indices must be in 0..{d_sae - 1}, got {indices.min()}..{indices.max()}")


def stream_of(indptr: Any, features: Any, doc_ids: Any, window_ids: Any) -> Stream:
    """Give columns of a token table as the compiled loops take them."""
    run_end = np.empty(len(doc_ids), np.int64)
    kernels.find_run_ends(doc_ids.astype(np.uint32), window_ids.astype(np.uint32), run_end)
    return Stream(indptr, np.ascontiguousarray(features), run_end)


def _cut(tokens: TokenTable, block: slice) -> tuple[Stream, Any, Any, Any]:
    first, last = tokens.indptr[block.start], tokens.indptr[block.stop]
    indptr = tokens.indptr[block.start : block.stop + 1] - first
    stream = stream_of(
        indptr, tokens.features[first:last], tokens.doc_ids[block], tokens.window_ids[block]
    )
    return stream, tokens.token_ids[block], tokens.acts[first:last], tokens.promotions[first:last]


def _check_block(tokens: TokenTable, block: slice, d_sae: int, d_vocab: int) -> None:
    first, last = tokens.indptr[block.start], tokens.indptr[block.stop]
    features, acts = tokens.features[first:last], tokens.acts[first:last]
    promotions = tokens.promotions[first:last]
    starts = np.zeros(last - first + 1, dtype=bool)
    starts[tokens.indptr[block] - first] = True
    step_ok = np.ones(last - first, dtype=bool)
    step_ok[1:] = features[1:] > features[:-1]
    faults = {
        f"a feature that is not in 0..{d_sae - 1}": features >= d_sae,
        "features that do not ascend": ~(step_ok | starts[:-1]),
        "an activation that is not a number above 0 and below 2^43": ~((acts > 0) & (acts < MOST)),
        "a promotion that is not a number between -2^43 and 2^43": ~(np.abs(promotions) < MOST),
    }
    for fault, where in faults.items():
        if where.any():
            entry = first + int(np.argmax(where))
            _refuse(tokens, int(np.searchsorted(tokens.indptr, entry, side="right")) - 1, fault)
    unknown = tokens.token_ids[block] >= d_vocab
    if unknown.any():
        _refuse(tokens, block.start + int(np.argmax(unknown)), f"an id not in 0..{d_vocab - 1}")


def _refuse(tokens: TokenTable, row: int, fault: str) -> None:
    raise StoreError(
        f"token {tokens.pos[row]} of document {tokens.doc_ids[row]} has {fault}; "
        "mend or leave out this document and gather again"
    )


def _fixed(values: NDArray[np.float32], unit: int) -> NDArray[np.int64]:
    return np.rint(values.astype(np.float64) * unit).astype(np.int64)


def _with_successor(stream: Stream) -> NDArray[np.int64]:
    rows = np.arange(len(stream.run_end))
    return rows[rows + 1 < stream.run_end]


def _sorted_positions(
    stream: Stream, nats: NDArray[np.int64], order: NDArray[np.int64], d_sae: int
) -> Sources:
    sizes = np.diff(stream.indptr)
    used = np.zeros(len(sizes), dtype=bool)
    used[order] = True
    n_each = np.bincount(stream.features[np.repeat(used, sizes)], minlength=d_sae)
    starts = np.concatenate([[0], np.cumsum(n_each)]).astype(np.int64)
    pos = np.empty(starts[-1], np.int32)
    out_nats = np.empty(starts[-1] if len(nats) else 0, np.int64)
    kernels.scatter_positions(order, stream, nats, starts[:-1].copy(), pos, out_nats)
    return Sources(starts, pos, out_nats)


def _nexts(stream: Stream, token_ids: NDArray[np.uint32], order: NDArray[np.int64]) -> Nexts:
    sizes = np.diff(stream.indptr)[order + 1]
    indptr = np.empty(len(order) + 1, np.int64)
    features = np.empty(int(sizes.sum()), np.uint32)
    kernels.copy_rows(order + 1, stream, indptr, features)
    return Nexts(token_ids[order + 1], indptr, features)


def _lag_pairs(run_end: NDArray[np.int64], lags: tuple[int, int]) -> int:
    after = run_end - 1 - np.arange(len(run_end))
    return int((np.clip(after, lags[0] - 1, lags[1]) - (lags[0] - 1)).sum())


def _per_feature(
    stream: Stream, acts: Any, sources: Sources, fired: Sources, *, unit: int
) -> dict[str, Any]:
    d_sae = len(fired.starts) - 1
    rows = np.arange(len(stream.run_end))
    has_previous = np.zeros(len(rows), dtype=bool)
    has_previous[_with_successor(stream) + 1] = True
    later = np.repeat(has_previous, np.diff(stream.indptr))
    act_sum, n_promoted = np.zeros(d_sae, np.int64), np.zeros(d_sae, np.int64)
    act_max = np.zeros(d_sae, np.float32)
    kernels.add_by_key(stream.features, _fixed(acts, unit), act_sum)
    kernels.max_by_key(stream.features, np.ascontiguousarray(acts), act_max)
    source_of = np.repeat(np.arange(d_sae, dtype=np.uint32), np.diff(sources.starts))
    kernels.add_by_key(source_of, (sources.nats > 0).astype(np.int64), n_promoted)
    return {
        "n_fires": np.diff(fired.starts),
        "n_source": np.diff(sources.starts),
        "n_target": np.bincount(stream.features[later], minlength=d_sae).astype(np.int64),
        "act_sum": act_sum,
        "act_max": act_max,
        "n_promoted_source": n_promoted,
    }


def _pair_tables(
    stream: Stream, sources: Sources, nexts: Nexts, fired: Sources, lags: tuple[int, int]
) -> dict[str, pl.DataFrame]:
    transitions = _transitions(stream, sources, nexts, fired, lags)
    return {
        "transitions": transitions,
        "edge_tokens": _edge_tokens(transitions, sources, nexts),
        "coactivation": _coactivation(stream, fired),
    }


def _transitions(
    stream: Stream, sources: Sources, nexts: Nexts, fired: Sources, lags: tuple[int, int]
) -> pl.DataFrame:
    d_sae = len(sources.starts) - 1
    n_lagged = len(stream.features) * (lags[1] - lags[0] + 1)  # of one pair, at most
    is_dense = has_square(d_sae) and len(fired.pos) > 0 and n_lagged < 1 << 31
    size = d_sae if is_dense else 0
    lagged = np.zeros((size, size), np.int32)
    if size:
        kernels.count_lagged(stream, lags, np.zeros(size, np.int32), lagged)
    fill = partial(kernels.fill_transitions, stream, sources, nexts, fired, lags, lagged)
    sums = ("n_pairs", "n_promoted", "nats", "n_lagged", "n_tokens")
    return _filled(fill, _square(d_sae), ids=("source", "target"), sums=sums)


def _edge_tokens(transitions: pl.DataFrame, sources: Sources, nexts: Nexts) -> pl.DataFrame:
    d_sae = len(sources.starts) - 1
    row_starts = np.searchsorted(
        transitions["source"].to_numpy(), np.arange(d_sae + 1, dtype=np.uint32)
    )
    token_starts = np.zeros(len(transitions) + 1, np.int64)
    np.cumsum(transitions["n_tokens"].to_numpy(), out=token_starts[1:])
    targets = transitions["target"].to_numpy()
    fill = partial(kernels.fill_edge_tokens, nexts, sources, row_starts, targets, token_starts)
    ids = ("source", "target", "token_id")
    return _filled(fill, token_starts[row_starts], ids=ids, sums=("n_pairs", "n_promoted"))


def _coactivation(stream: Stream, fired: Sources) -> pl.DataFrame:
    d_sae = len(fired.starts) - 1
    fill = partial(kernels.fill_coactivation, stream, fired)
    ids = ("feature_a", "feature_b")
    return _filled(fill, _square(d_sae), ids=ids, sums=("n_both",))


def _square(d_sae: int) -> NDArray[np.int64]:
    """Give the room that tables of all pairs of features take at most."""
    return np.arange(d_sae + 1, dtype=np.int64) * d_sae


def _promoted_tokens(sources: Sources, nexts: Nexts) -> pl.DataFrame:
    state, out = np.zeros(2, np.int64), np.empty((4, len(sources.pos)), np.int64)
    token_loops.fill_promoted_tokens(sources, nexts, state, out)
    table = out[:, : state[1]]
    return _frame(table, ids=("feature_idx", "token_id"), sums=("n_promoted", "nats"))


def _token_features(stream: Stream, token_ids: Any, d_sae: int) -> pl.DataFrame:
    order = np.argsort(token_ids, kind="stable")
    fired = _sorted_positions(stream, np.empty(0, np.int64), order, d_sae)
    state, out = np.zeros(2, np.int64), np.empty((3, len(fired.pos)), np.int64)
    token_loops.fill_token_features(fired, token_ids[order], state, out)
    return _frame(out[:, : state[1]], ids=("feature_idx", "token_id"), sums=("n_fires",))


def _filled(
    fill: Callable[[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]], None],
    room: NDArray[np.int64],
    *,
    ids: tuple[str, ...],
    sums: tuple[str, ...],
) -> pl.DataFrame:
    """Fill a table, ranges of sources on several cores; source i has at most diff(room)[i] rows.

    The table is left in pieces: joined, all of it would be copied once more.
    """
    n_sources = len(room) - 1

    def pieces_of(begin: int, end: int) -> list[pl.DataFrame]:
        most = int(np.diff(room[begin : end + 1]).max(initial=0))
        state = np.array([begin, 0, end])
        size = min(max(BUFFER_ROWS, most), int(room[end] - room[begin]))
        id_rows = np.empty((len(ids), size), np.uint32)
        sum_rows = np.empty((len(sums), size), np.int64)
        pieces = []
        while state[0] < end:
            fill(state, id_rows, sum_rows)
            filled = [row[: state[1]].copy() for row in (*id_rows, *sum_rows)]
            pieces.append(pl.DataFrame(dict(zip((*ids, *sums), filled, strict=True))))
        return pieces

    n_threads = os.cpu_count() or 1
    cuts = np.linspace(0, n_sources, RANGES * n_threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(n_threads) as pool:
        ranges = list(pool.map(pieces_of, cuts[:-1], cuts[1:]))
    return pl.concat([piece for pieces in ranges for piece in pieces], rechunk=False)


def _frame(table: Any, *, ids: tuple[str, ...], sums: tuple[str, ...]) -> pl.DataFrame:
    columns = {name: table[k].astype(np.uint32) for k, name in enumerate(ids)}
    sums_at = len(ids)
    columns |= {name: table[sums_at + k].copy() for k, name in enumerate(sums)}
    return pl.DataFrame(columns)
