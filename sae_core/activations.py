"""Batches of activations to train a dictionary on: of an array, an iterator, or a model.

From a model: a block of windows, spread over the whole text, is run to the hook point and its
activations are shuffled, so that a batch mixes hundreds of contexts. Block b depends on the seed
and b alone, so that a killed run goes on with the same batches. A model that yields NaN or infinity
on some text is stopped at, with the token named, before any of it is used.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from sae_core.devices import Portions
from sae_core.errors import SaeError
from sae_core.token_file import WindowSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from sae_core.transformer import Transformer

FORWARD_WINDOWS = 32  # windows a forward pass of the model
MEDIAN_STEPS = 20  # Weiszfeld's iteration has converged to 1e-4 by then
ROUNDING = 3e-7  # share of the largest value that a mean in float32 may miss
DOCUMENT_START = 0  # token id of <|endoftext|>; its activations are the same everywhere


class ActivationSource(Protocol):
    """Where batches come from."""

    def batch(self, step: int) -> NDArray[np.float32] | Tensor:
        """Give the batch of one step: (n, d_in) float32; steps are asked for in order."""

    def peek(self, step: int) -> NDArray[np.float32] | Tensor:
        """Give the batch of a later step, which stays to come."""


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

    peek = batch


class IteratorSource:
    """Batches of an iterator, each taken once and in its order."""

    def __init__(self, batches: Iterator[NDArray[np.float32]]) -> None:
        self.batches = batches
        self._kept: dict[int, NDArray[np.float32]] = {}  # those to come that were looked at
        self._n_taken = 0

    def batch(self, step: int) -> NDArray[np.float32]:
        """Give the batch of one step; steps are asked for in order, the last one perhaps again."""
        found = self.peek(step)
        for earlier in [kept for kept in self._kept if kept < step]:
            del self._kept[earlier]
        return found

    def peek(self, step: int) -> NDArray[np.float32]:
        """Give the batch of a later step; all up to it are kept until they are taken."""
        while self._n_taken <= step:
            found = next(self.batches, None)
            if found is None:
                raise SaeError(
                    f"the activations ended after {self._n_taken} batches, before step {step}; "
                    "give more, or lower n_activations"
                )
            self._kept[self._n_taken] = found
            self._n_taken += 1
        return self._kept[step]


class WindowPlaces(WindowSampler):
    """A sampler that also tells where in the file its windows start."""

    def starts(self, step: int) -> list[int]:
        """Give the token number at which each window of one step starts."""
        first = step * self.batch_windows
        return [self._start(at) for at in range(first, first + self.batch_windows)]


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
        name: str = "the token file",
        progress: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Read nothing yet; `name` is that of the token file, for messages."""
        n_ctx = model.config.n_ctx
        n_windows = min(block_windows, (len(token_ids) - n_ctx) // n_ctx)
        self.model = model
        self.layer = layer
        self.batch_size = batch_size
        self.seed = seed
        self.name = name
        self.device = model.W_U.device
        self.sampler = WindowPlaces(token_ids, n_ctx=n_ctx, batch_windows=n_windows, seed=seed)
        self.batches_a_block = max(1, n_windows * n_ctx // batch_size)
        self.portions = Portions(FORWARD_WINDOWS, "window", self.device, progress, SaeError)
        self._block = -1
        self._acts = torch.empty(n_windows * n_ctx, model.config.d_mlp, device=self.device)
        self._order = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Tensor:
        """Give the batch of one step: (batch_size, d_in), on the model's device.

        Raises:
            SaeError: an activation of its block is NaN or infinite, or a single window does not
                fit into the device's memory.
        """
        block, place = divmod(step, self.batches_a_block)
        if block != self._block:
            self._block = -1
            self._read(block, step)
            self._block = block
        size = self.batch_size
        return self._acts[self._order[place * size : (place + 1) * size]]

    peek = batch

    @torch.no_grad()
    def _read(self, block: int, step: int) -> None:
        windows = self.sampler.batch(block)[:, :-1]
        self.portions.fit(lambda: self._run(windows), len(windows))
        if not is_finite(self._acts):
            self._refuse(windows, block, step)
        kept = np.flatnonzero(windows.ravel() != DOCUMENT_START)
        rng = np.random.default_rng([self.seed, 1, block])
        # The few skipped rows are made up by reading some again, so that each block has the same
        # number of batches.
        order = np.resize(rng.permutation(kept), self.batches_a_block * self.batch_size)
        self._order = torch.from_numpy(order).to(self.device)

    def _run(self, windows: NDArray[np.int64]) -> None:
        """Fill (windows * n_ctx, d_in) activations."""
        ids = torch.from_numpy(windows)
        acts = self._acts.view(*windows.shape, -1)  # (windows, n_ctx, d_in)
        for rows in self.portions.slices(len(ids)):
            found = self.model.run_to_hook(ids[rows].to(self.device), layer=self.layer)
            acts[rows] = found.acts

    def _refuse(self, windows: NDArray[np.int64], block: int, step: int) -> None:
        """Name the first token of the file on which the model fails."""
        acts = self._acts.view(*windows.shape, -1)
        bad = (~torch.isfinite(acts)).flatten(1).any(dim=1).nonzero()[:, 0].tolist()
        starts = self.sampler.starts(block)
        window = min(bad, key=starts.__getitem__)
        token = starts[window] + self._place(windows[window])
        document = int((self.sampler.token_ids[: token + 1] == DOCUMENT_START).sum()) - 1
        raise SaeError(
            f"the model's activations of step {step} hold NaN or infinity: on token {token:,} of "
            f"{self.name} (document {max(document, 0):,}, both counted from 0), and in {len(bad)} "
            f"windows of {len(windows)}; leave that text out, or check the model"
        )

    def _place(self, window: NDArray[np.int64]) -> int:
        """Find where a window goes bad: attention spreads NaN to the tokens before it too."""
        ids = torch.from_numpy(window).to(self.device)[None]

        def fails(n_tokens: int) -> bool:
            return not is_finite(self.model.run_to_hook(ids[:, :n_tokens], layer=self.layer).acts)

        return bisect_left(range(1, len(window)), True, key=fails)


def source_of(
    activations: NDArray[np.float32] | Iterator[NDArray[np.float32]],
    *,
    batch_size: int,
    seed: int,
) -> ActivationSource:
    """Give the source of an array's batches, or of an iterator's.

    Raises:
        SaeError: the array has no rows.
    """
    if not isinstance(activations, np.ndarray):
        return IteratorSource(iter(activations))
    if len(activations) == 0:
        raise SaeError("there are no activations to train on; give at least one batch")
    return ArraySource(activations, batch_size=batch_size, seed=seed)


def checked(
    batch: NDArray[np.float32] | Tensor, step: int, *, d_in: int, device: torch.device
) -> Tensor:
    """Give the batch of a step as a float32 tensor on a device.

    Raises:
        SaeError: it is not (n, d_in) with n >= 1, or holds NaN or infinity.
    """
    if batch.ndim != 2 or batch.shape[1] != d_in or len(batch) == 0:
        raise SaeError(
            f"the activations of step {step} have shape {tuple(batch.shape)}; (n, {d_in}) was "
            "expected"
        )
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(np.ascontiguousarray(batch, np.float32))
    if not is_finite(batch):
        raise SaeError(
            f"the activations of step {step} hold NaN or infinity; check the model's output"
        )
    return batch.to(device)


def is_finite(x: Tensor) -> bool:
    """Say whether no value is NaN or infinite; the sum of good values nearly always tells."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def unit_scale(x: Tensor) -> float:
    """Give the factor that brings the rows' mean squared distance from their mean to 1.

    Args:
        x: (n, d_in).

    Returns:
        A factor > 0; 1 when all rows are equal but for rounding.
    """
    variance = _variance(x)
    if not 0 < float(variance) < math.inf:  # all equal, or squares beyond float32
        variance = _variance(x.double())
    largest = max(abs(float(bound)) for bound in x.aminmax())
    is_rounding = float(variance) <= x.shape[1] * (ROUNDING * largest) ** 2
    return 1.0 if is_rounding else float(1 / variance.sqrt())


def _variance(x: Tensor) -> Tensor:
    return (x - x.mean(dim=0)).square().sum(dim=1).mean()


@torch.no_grad()
def geometric_median(x: Tensor) -> Tensor:
    """Give the point with the least sum of distances to all rows: (n, d_in) to (d_in,)."""
    median = x.mean(dim=0)
    for _ in range(MEDIAN_STEPS):
        weights = 1 / (x - median).norm(dim=1, keepdim=True).clamp_min(1e-6)
        median = (weights * x).sum(dim=0) / weights.sum()
    return median
