"""Compiled loops of screening: a rough product -> the features that fire, with exact values.

A chunk of tokens at a time: (1) each token's bounds give a floor, and the features that reach it;
(2) these are sorted by feature, so that a feature's weights are read once for all its tokens while
the tokens stay in the cache, and their values computed in float32; (3) each token keeps its own.
Every loop has a twin in `tests/naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sae_core.kernels import compiled, compiled_sum
from sae_core.row_loops import NOT_A_NUMBER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sae_core.screening import Rough

ROUNDING = 2.0**-8 * 1.01  # of the rough product itself to bfloat16, relative, at most
SURELY = 1.001  # norms are rounded too
GROUPS = 16  # a kept feature; the k largest are then nearly all in groups of their own
LANES = 8  # marks looked at at once
CHUNK = 512  # tokens; 1 MB of activations at d_in 512
ROOM = 80  # features a token of a chunk; a chunk that reaches more ends sooner
HALVINGS = 12  # of the range in which the floor is sought


class _Found(NamedTuple):
    """The features that reach the floor, of a chunk of tokens."""

    begins: NDArray[np.int64]
    """(CHUNK + 1,) start of each token's features."""

    ids: NDArray[np.uint32]
    """(room,) feature ids, ascending within a token."""

    values: NDArray[np.float32]
    """(room,) their exact values."""

    starts: NDArray[np.int64]
    """(d_sae + 1,) start of each feature's places."""

    place: NDArray[np.int64]
    """(room,) places, sorted by feature."""

    row: NDArray[np.int32]
    """(room,) token of the chunk, sorted by feature."""


@compiled
def keep_largest_screened(  # noqa: PLR0917 - a compiled loop takes arrays by position
    rough: Rough,
    W: NDArray[np.float32],
    bias: NDArray[np.float32],
    sizes: NDArray[np.float32],
    counts: NDArray[np.int64],
    ids: NDArray[np.uint32],
    values: NDArray[np.float32],
) -> int:
    """Do what `row_loops.keep_largest` does, and give how many values were computed for it."""
    n, d_sae, k = len(rough.x), len(bias), ids.shape[1]
    found, high = _room(d_sae), _lanes(d_sae, -np.inf)
    low, best = np.empty(d_sae, np.float32), np.empty(min(GROUPS * k, d_sae), np.float32)
    spare = np.empty(d_sae, np.float32)
    floor, reaches = np.empty(1, np.float32), np.empty(len(high), np.uint8)
    n_computed = 0
    first = 0
    while first < n:
        row, m = first, 0
        while row < n and row - first < CHUNK and m + d_sae <= len(found.ids):
            found.begins[row - first] = m
            if _bound(rough, row, bias, sizes, low, high):
                _largest_of_groups(low, best)
                floor[0] = _floor_of(best, k)
                m = _collect(high, floor, reaches, found.ids, m)
                counts[row] = 0
            else:
                counts[row] = NOT_A_NUMBER
            row += 1
        found.begins[row - first] = m
        _compute(rough.x[first:row], W, bias, found)
        for at in range(first, row):
            begin, end = found.begins[at - first], found.begins[at - first + 1]
            if counts[at] != NOT_A_NUMBER:
                part = found.ids[begin:end], found.values[begin:end]
                counts[at] = _keep_k(part[0], part[1], spare, ids[at], values[at])
        n_computed += m
        first = row
    return n_computed


@compiled
def keep_above_screened(  # noqa: PLR0917 - a compiled loop takes arrays by position
    rough: Rough,
    W: NDArray[np.float32],
    bias: NDArray[np.float32],
    sizes: NDArray[np.float32],
    floor: NDArray[np.float32],
    counts: NDArray[np.int64],
    ids: NDArray[np.uint32],
    values: NDArray[np.float32],
) -> int:
    """Do what `row_loops.keep_above` does, and give how many values were computed for it."""
    n, d_sae = len(rough.x), len(bias)
    found, high = _room(d_sae), _lanes(d_sae, -np.inf)
    low, least = np.empty(d_sae, np.float32), _lanes(d_sae, np.inf)
    least[:d_sae] = floor
    reaches = np.empty(len(high), np.uint8)
    n_computed = 0
    first = 0
    while first < n:
        row, m = first, 0
        while row < n and row - first < CHUNK and m + d_sae <= len(found.ids):
            found.begins[row - first] = m
            if _bound(rough, row, bias, sizes, low, high):
                m = _collect(high, least, reaches, found.ids, m)
                counts[row] = 0
            else:
                counts[row] = NOT_A_NUMBER
            row += 1
        found.begins[row - first] = m
        _compute(rough.x[first:row], W, bias, found)
        for at in range(first, row):
            for i in range(found.begins[at - first], found.begins[at - first + 1]):
                if found.values[i] > floor[found.ids[i]]:
                    ids[at, counts[at]] = found.ids[i]
                    values[at, counts[at]] = found.values[i]
                    counts[at] += 1
        n_computed += m
        first = row
    return n_computed


@compiled_sum
def round_row(
    w: NDArray[np.float32], rough: NDArray[np.uint16], sizes: NDArray[np.float32]
) -> None:
    """Fill rough with w in bfloat16 (bits), and sizes with |w| and what rounding took from w."""
    bits, wide = w.view(np.uint32), np.empty(len(w), np.uint32)
    for at in range(len(w)):
        odd = (bits[at] >> np.uint32(16)) & np.uint32(1)
        wide[at] = (bits[at] + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
        rough[at] = wide[at] >> np.uint32(16)
    near = wide.view(np.float32)
    size, lost = np.float32(0), np.float32(0)
    for at in range(len(w)):
        size += w[at] * w[at]
        lost += (w[at] - near[at]) * (w[at] - near[at])
    norm = np.sqrt(size)
    sums = norm * np.float32(len(w) * 2.0**-22)  # what float32 sums may lose
    sizes[0] = norm * np.float32(SURELY)
    sizes[1] = (np.sqrt(lost) + sums) * np.float32(SURELY)


@compiled
def round_rows(
    W: NDArray[np.float32], rough: NDArray[np.uint16], sizes: NDArray[np.float32]
) -> None:
    """Do what `round_row` does with each row of W (d_sae, d_in); sizes is (2, d_sae)."""
    for j in range(len(W)):
        round_row(W[j], rough[j], sizes[:, j])


@compiled
def _room(d_sae: int) -> _Found:
    room = CHUNK * ROOM + d_sae
    return _Found(
        np.empty(CHUNK + 1, np.int64),
        np.empty(room, np.uint32),
        np.empty(room, np.float32),
        np.empty(d_sae + 1, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.int32),
    )


@compiled
def _lanes(d_sae: int, value: float) -> NDArray[np.float32]:
    """Make (d_sae,) rounded up to whole LANES; what is past the last feature is never reached."""
    return np.full((d_sae + LANES - 1) // LANES * LANES, value, np.float32)


@compiled
def _largest_of_groups(low: NDArray[np.float32], best: NDArray[np.float32]) -> None:
    """Fill best[g] with the largest of low[g], low[g + len(best)], ...: each of another feature."""
    best[:] = low[: len(best)]
    for first in range(len(best), len(low), len(best)):
        part = low[first : first + len(best)]
        for group in range(len(part)):
            value, largest_yet = part[group], best[group]
            best[group] = value if value > largest_yet else largest_yet  # noqa: FURB136 - max is slow


@compiled
def _floor_of(best: NDArray[np.float32], k: int) -> np.float32:
    """Give a number >= 0, as large as few halvings find it, that at least k of best reach, or 0."""
    low, high = np.float32(0), np.float32(0)
    for group in range(len(best)):
        high = best[group] if best[group] > high else high  # noqa: FURB136 - max is slow
    for _ in range(HALVINGS):
        middle = np.float32(0.5) * (low + high)
        n_reach = 0
        for group in range(len(best)):
            n_reach += best[group] >= middle
        if n_reach >= k:
            low = middle
        else:
            high = middle
        if n_reach == k:
            break
    return low


@compiled
def _collect(
    high: NDArray[np.float32],
    floor: NDArray[np.float32],
    reaches: NDArray[np.uint8],
    ids: NDArray[np.uint32],
    m: int,
) -> int:
    """Add to ids, from place m on, the features whose bound reaches their floor; give the new m.

    floor is one for all, or one a feature; reaches is room for (len(high),) marks.
    """
    if len(floor) == 1:
        least = floor[0]
        for j in range(len(high)):
            reaches[j] = high[j] >= least
    else:
        for j in range(len(high)):
            reaches[j] = high[j] >= floor[j]
    lanes = reaches.view(np.uint64)
    for at in range(len(lanes)):
        if lanes[at] != 0:
            for j in range(at * LANES, (at + 1) * LANES):
                ids[m] = j
                m += reaches[j]
    return m


@compiled
def _compute(
    x: NDArray[np.float32], W: NDArray[np.float32], bias: NDArray[np.float32], found: _Found
) -> None:
    """Fill the exact values, a feature at a time."""
    sort_by_feature(found.begins[: len(x) + 1], found.ids, found.starts, found.place, found.row)
    for j in range(len(bias)):
        for at in range(found.starts[j], found.starts[j + 1]):
            found.values[found.place[at]] = dot(x[found.row[at]], W[j]) + bias[j]


@compiled
def sort_by_feature(
    indptr: NDArray[np.int64],
    ids: NDArray[np.uint32],
    starts: NDArray[np.int64],
    place: NDArray[np.int64],
    row_of: NDArray[np.int32],
) -> None:
    """Fill starts (d_sae + 1,), and place and row_of (m,): where in ids, and in which row, each is."""
    starts[:] = 0
    for at in range(indptr[-1]):
        starts[ids[at] + 1] += 1
    for j in range(1, len(starts)):
        starts[j] += starts[j - 1]
    for row in range(len(indptr) - 1):
        for at in range(indptr[row], indptr[row + 1]):
            to = starts[ids[at]]
            place[to] = at
            row_of[to] = row
            starts[ids[at]] += 1
    for j in range(len(starts) - 1, 0, -1):
        starts[j] = starts[j - 1]
    starts[0] = 0


@compiled
def _keep_k(
    found: NDArray[np.uint32],
    exact: NDArray[np.float32],
    spare: NDArray[np.float32],
    ids: NDArray[np.uint32],
    values: NDArray[np.float32],
) -> int:
    """Fill the k largest above 0, ids ascending, of equal ones the lowest; give how many."""
    k, n = len(ids), 0
    for value in exact:
        spare[n] = value
        n += value > 0
    least, room = np.float32(0), 0
    if n > k:
        least = _kth_largest(spare[:n], k)
        room = k
        for value in exact:
            room -= value > least
    kept = 0
    for at in range(len(exact)):
        is_tied = exact[at] == least and room > 0
        if exact[at] > least or is_tied:
            room -= is_tied
            ids[kept] = found[at]
            values[kept] = exact[at]
            kept += 1
    return kept


@compiled
def _kth_largest(values: NDArray[np.float32], k: int) -> Any:
    """Give the k-th largest, 1 <= k <= n, by Hoare's selection; values change places."""
    low, high = 0, len(values) - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    return values[k - 1]


@compiled_sum
def _bound(  # noqa: PLR0917 - a compiled loop takes arrays by position
    rough: Rough,
    row: int,
    bias: NDArray[np.float32],
    sizes: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
) -> bool:
    """Fill low and high (d_sae,) with the bounds of each value; False where one is no number."""
    near, lost = _norms(rough.x[row], rough.x_rough[row])
    row_bits, wide = rough.bits[row], high.view(np.uint32)
    for j in range(len(row_bits)):
        wide[j] = np.uint32(row_bits[j]) << np.uint32(16)
    rounding = np.float32(ROUNDING)
    norms, losses = sizes[0], sizes[1]
    total = np.float32(0)
    for j in range(len(row_bits)):
        value = high[j]
        total += np.float32(0) * value  # 0, but for infinities and what is not a number
        error = lost * norms[j] + near * losses[j] + rounding * abs(value)
        low[j] = value - error + bias[j]
        high[j] = value + error + bias[j]
    return bool(lost < np.inf and total == 0)


@compiled_sum
def _norms(x: NDArray[np.float32], bits: NDArray[np.uint16]) -> tuple[np.float32, np.float32]:
    """Give at least |x'| and |x - x'|, x' being the rounded activations."""
    wide = np.empty(len(x), np.uint32)
    near = wide.view(np.float32)
    for at in range(len(x)):
        wide[at] = np.uint32(bits[at]) << np.uint32(16)
    size, lost = np.float32(0), np.float32(0)
    for at in range(len(x)):
        size += near[at] * near[at]
        lost += (x[at] - near[at]) * (x[at] - near[at])
    return np.sqrt(size) * np.float32(SURELY), np.sqrt(lost) * np.float32(SURELY)


@compiled_sum
def dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    """Give the inner product of two rows."""
    total = np.float32(0)
    for at in range(len(a)):
        total += a[at] * b[at]
    return total
