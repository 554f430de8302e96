"""Compiled loops over rows of a dictionary's hidden layer: which values fire on each token.

A loop looks at most values once, in blocks, and only stops where one is large enough. Every loop has
a twin in `tests/naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_core.kernels import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 64  # values compared at once with the least that is kept
NOT_A_NUMBER = -1


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
        counts[row] = largest(dense[row], bias, ids[row], values[row])
        sort_by_id(counts[row], ids[row], values[row])


@compiled
def largest(
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
                    insert(n, first + j, value, ids, values)
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
def insert(
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
def sort_by_id(n: int, ids: NDArray[np.uint32], values: NDArray[np.float32]) -> None:
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
