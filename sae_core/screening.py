"""Which features can fire on a token, from a rough product; only their values are computed in full.

1. Encoder and activations are rounded to bfloat16 and multiplied, on processors with instructions
   for that (AMX, AVX512-BF16) many times faster than in float32.
2. What rounding took from x and from w is known, so that each feature's value has a lower and an
   upper bound: |x w - x' w'| <= |x - x'| |w| + |x'| |w - w'| (Cauchy-Schwarz).
3. k features of which each has at least some lower bound give a floor under all that is kept (or the
   feature has one of its own). Only features whose upper bound reaches it are computed in float32,
   and the largest of those are kept.

No feature is missed: the answer is that of the full product, up to the order of float32 sums. Every
loop has a twin in `tests/naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sae_core.kernels import compiled, compiled_sum
from sae_core.row_loops import NOT_A_NUMBER, insert, largest, sort_by_id

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

LEAST_FEATURES = 2048  # with fewer, the full product is as fast
MOST_COMPUTED = 128  # features computed a token; with more, the full product is faster
ROUNDING = 2.0**-8 * 1.01  # of the rough product itself to bfloat16, relative, at most
SURELY = 1.001  # norms are rounded too
GROUPS = 16  # a kept feature; the k largest are then nearly all in groups of their own
LANES = 16  # bounds compared at once with the floor


class Screen(NamedTuple):
    """An encoder in both precisions."""

    rough: Tensor
    """(d_in, d_sae) bfloat16."""

    W: NDArray[np.float32]
    """(d_sae, d_in) the same in float32, a feature's weights side by side."""

    bias: NDArray[np.float32]
    """(d_sae,) added to the product."""

    sizes: NDArray[np.float32]
    """(2, d_sae) norm of each feature's weights, and of what rounding took from them."""


class Rough(NamedTuple):
    """A rough product and what it was made from."""

    bits: NDArray[np.uint16]
    """(n, d_sae) the product, bits of bfloat16."""

    x: NDArray[np.float32]
    """(n, d_in) the activations."""

    x_rough: NDArray[np.uint16]
    """(n, d_in) the activations that were multiplied, bits of bfloat16."""


def screen_of(W_enc: Tensor, b_enc: Tensor) -> Screen | None:
    """Prepare an encoder.

    Args:
        W_enc: (d_in, d_sae) float32 on the CPU.
        b_enc: (d_sae,) added to the product.

    Returns:
        It in both precisions; None where the full product is faster: few features, or a processor
        without bfloat16 products.
    """
    d_in, d_sae = W_enc.shape
    if d_sae < LEAST_FEATURES or not has_bfloat16_products():
        return None
    W, rough = W_enc.T.contiguous(), W_enc.bfloat16()
    norms = torch.linalg.vector_norm(W, dim=1)
    lost = torch.linalg.vector_norm(W_enc - rough.float(), dim=0)
    lost += norms * (d_in * 2.0**-22)  # of float32 sums
    sizes = torch.stack([norms, lost]) * SURELY
    return Screen(rough, W.numpy(), b_enc.numpy(), sizes.numpy())


def multiply(x: Tensor, screen: Screen, out: Tensor) -> Rough:
    """Give the rough product of activations with the encoder.

    Args:
        x: (n, d_in) float32 on the CPU.
        screen: the encoder.
        out: (n, d_sae) bfloat16, filled.
    """
    x_rough = x.bfloat16()
    torch.mm(x_rough, screen.rough, out=out)
    bits = (rows.view(torch.uint16).numpy() for rows in (out, x_rough))
    return Rough(next(bits), x.numpy(), next(bits))


def has_bfloat16_products() -> bool:
    """Say whether this processor multiplies matrices of bfloat16 faster than those of float32."""
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(known and known())


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
    d_sae, k = len(bias), ids.shape[1]
    low, high = _room(d_sae), _room(d_sae)
    best = np.empty(min(GROUPS * k, d_sae), np.float32)
    nothing = np.zeros(len(best), np.float32)
    n_computed = 0
    for row in range(len(rough.x)):
        if not _bound(rough, row, bias, sizes, low, high):
            counts[row] = NOT_A_NUMBER
            continue
        _largest_of_groups(low[:d_sae], best)
        n = largest(best, nothing, ids[row], values[row])
        floor = values[row, k - 1] if n == k else np.float32(0)
        n = 0
        least = np.float32(0)
        for first in range(0, len(high), LANES):
            n_reach = 0
            for lane in range(LANES):
                n_reach += high[first + lane] >= floor
            if n_reach > 0:
                for j in range(first, min(first + LANES, d_sae)):
                    if high[j] >= floor:
                        value = _dot(rough.x[row], W[j]) + bias[j]
                        n_computed += 1
                        if value > least:
                            insert(n, j, value, ids[row], values[row])
                            n = min(n + 1, k)
                            if n == k:
                                least = values[row, k - 1]
        counts[row] = n
        sort_by_id(n, ids[row], values[row])
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
    d_sae = len(bias)
    low, high = _room(d_sae), _room(d_sae)
    least = np.full(len(high), np.inf, np.float32)
    least[:d_sae] = floor
    n_computed = 0
    for row in range(len(rough.x)):
        if not _bound(rough, row, bias, sizes, low, high):
            counts[row] = NOT_A_NUMBER
            continue
        n = 0
        for first in range(0, len(high), LANES):
            n_reach = 0
            for lane in range(LANES):
                n_reach += high[first + lane] > least[first + lane]
            if n_reach > 0:
                for j in range(first, min(first + LANES, d_sae)):
                    if high[j] > floor[j]:
                        value = _dot(rough.x[row], W[j]) + bias[j]
                        n_computed += 1
                        if value > floor[j]:
                            ids[row, n] = j
                            values[row, n] = value
                            n += 1
        counts[row] = n
    return n_computed


@compiled
def _room(d_sae: int) -> NDArray[np.float32]:
    """Make room for bounds, a whole number of LANES; those past the last feature are never reached."""
    return np.full((d_sae + LANES - 1) // LANES * LANES, -np.inf, np.float32)


@compiled
def _largest_of_groups(low: NDArray[np.float32], best: NDArray[np.float32]) -> None:
    """Fill best[g] with the largest of low[g], low[g + len(best)], ...: each of another feature."""
    best[:] = low[: len(best)]
    for first in range(len(best), len(low), len(best)):
        part = low[first : first + len(best)]
        for group in range(len(part)):
            value, largest_yet = part[group], best[group]
            best[group] = value if value > largest_yet else largest_yet  # noqa: FURB136 - max is slow


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
def _dot(x: NDArray[np.float32], w: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for at in range(len(x)):
        total += x[at] * w[at]
    return total
