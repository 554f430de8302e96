"""Batches of activations to train a dictionary on: of an array, an iterator, or a model.

From a model: a block of windows, spread over the whole text, is run to the hook point and its
activations are shuffled, so that a batch mixes hundreds of contexts. Block b depends on the seed
and b alone, so that a killed run goes on with the same batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from sae_core.errors import SaeError
from sae_core.token_file import WindowSampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from sae_core.transformer import Transformer

FORWARD_WINDOWS = 32  # windows a forward pass of the model
MEDIAN_STEPS = 20  # Weiszfeld's iteration has converged to 1e-4 by then
DOCUMENT_START = 0  # token id of <|endoftext|>; its activations are the same everywhere


class ActivationSource(Protocol):
    """Where batches come from."""

    def batch(self, step: int) -> NDArray[np.float32]:
        """Give the batch of one step: (n, d_in)."""


class ArraySource:
    """Batches of an array, in an order shuffled anew each time through."""

    def __init__(self, activations: NDArray[np.float32], *, batch_size: int, seed: int) -> None:
        self.activations = activations
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def batch(self, step: int) -> NDArray[np.float32]:
        """Give the batch of one step: (batch_size, d_in), or all rows when there are fewer."""
        size = min(self.batch_size, len(self.activations))
        epoch, place = divmod(step, len(self.activations) // size)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = rng.permutation(len(self.activations))
            self._epoch = epoch
        return self.activations[self._order[place * size : (place + 1) * size]]


class IteratorSource:
    """Batches of an iterator, each taken once and in its order."""

    def __init__(self, batches: Iterator[NDArray[np.float32]]) -> None:
        self.batches = batches
        self._last: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._next_step = 0

    def batch(self, step: int) -> NDArray[np.float32]:
        """Give the batch of one step; steps are asked for in order, the last one perhaps again."""
        while self._next_step <= step:
            found = next(self.batches, None)
            if found is None:
                raise SaeError(
                    f"the activations ended after {self._next_step} batches, before step {step}; "
                    "give more, "
                    "or lower n_activations"
                )
            self._next_step += 1
            self._last = found
        return self._last


class ModelSource:
    """Activations of a model at its hook point, shuffled over hundreds of windows."""

    def __init__(
        self,
        model: Transformer,
        token_ids: NDArray[np.uint16],
        *,
        layer: int,
        batch_size: int,
        block_windows: int,
        seed: int,
    ) -> None:
        n_ctx = model.config.n_ctx
        n_windows = min(block_windows, (len(token_ids) - n_ctx) // n_ctx)
        self.model = model
        self.layer = layer
        self.batch_size = batch_size
        self.seed = seed
        self.sampler = WindowSampler(token_ids, n_ctx=n_ctx, batch_windows=n_windows, seed=seed)
        self.batches_a_block = max(1, n_windows * n_ctx // batch_size)
        self._block = -1
        self._acts = torch.empty(0)
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def batch(self, step: int) -> NDArray[np.float32]:
        """Give the batch of one step: (batch_size, d_in)."""
        block, place = divmod(step, self.batches_a_block)
        if block != self._block:
            self._read(block)
        size = self.batch_size
        rows = self._order[place * size : (place + 1) * size]
        acts: NDArray[np.float32] = self._acts[torch.from_numpy(rows)].numpy()
        return acts

    @torch.no_grad()
    def _read(self, block: int) -> None:
        windows = self.sampler.batch(block)[:, :-1]
        ids = torch.from_numpy(windows)
        parts = [
            self.model.run_to_hook(part, layer=self.layer).acts.flatten(0, 1)
            for part in torch.split(ids, FORWARD_WINDOWS)
        ]
        self._acts = torch.cat(parts)  # (windows * n_ctx, d_in)
        kept = np.flatnonzero(windows.ravel() != DOCUMENT_START)
        rng = np.random.default_rng([self.seed, 1, block])
        # The few skipped rows are made up by reading some again, so that each block has the same
        # number of batches.
        self._order = np.resize(rng.permutation(kept), self.batches_a_block * self.batch_size)
        self._block = block


def unit_scale(x: Tensor) -> float:
    """Give the factor that brings the rows' mean squared distance from their mean to 1.

    Args:
        x: (n, d_in).

    Returns:
        A factor > 0; 1 when all rows are equal.
    """
    variance = (x - x.mean(dim=0)).square().sum(dim=1).mean()
    return float(1 / variance.sqrt()) if float(variance) > 0 else 1.0


@torch.no_grad()
def geometric_median(x: Tensor) -> Tensor:
    """Give the point with the least sum of distances to all rows: (n, d_in) to (d_in,)."""
    median = x.mean(dim=0)
    for _ in range(MEDIAN_STEPS):
        weights = 1 / (x - median).norm(dim=1, keepdim=True).clamp_min(1e-6)
        median = (weights * x).sum(dim=0) / weights.sum()
    return median
