"""Which features can fire on a token, from a rough product; only their values are computed in full.

1. Encoder and activations are rounded to bfloat16 and multiplied, on processors with instructions
   for that (AMX, AVX512-BF16) many times faster than in float32.
2. What rounding took from x and from w is known, so that each feature's value has a lower and an
   upper bound: |x w - x' w'| <= |x - x'| |w| + |x'| |w - w'| (Cauchy-Schwarz).
3. k features of which each has at least some lower bound give a floor under all that is kept (or the
   feature has one of its own). Only features whose upper bound reaches it are computed in float32,
   and the largest of those are kept.

No feature is missed: the answer is that of the full product, up to the order of float32 sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sae_core.screen_loops import round_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

LEAST_FEATURES = 2048  # with fewer, the full product is as fast
BFLOAT16_INSTRUCTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
MOST_COMPUTED = 256  # features computed a token; with more, the full product is faster


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
    W, rough = W_enc.T.contiguous().numpy(), torch.empty(d_sae, d_in, dtype=torch.bfloat16)
    sizes = np.empty((2, d_sae), np.float32)
    round_rows(W, rough.view(torch.uint16).numpy(), sizes)
    return Screen(rough.T, W, b_enc.numpy(), sizes)


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
    known = (getattr(torch.cpu, name, None) for name in BFLOAT16_INSTRUCTIONS)
    return any(is_supported() for is_supported in known if is_supported)
