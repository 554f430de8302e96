"""A file of token ids as training text: opened without reading it, and cut into shuffled windows.

The file holds uint16 ids, little-endian, documents one after the other, each starting with id 0.
Every epoch cuts it into windows at a new offset and shuffles them; what a step reads depends on the
seed and the step alone, so that a killed run goes on with the same batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_core.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def read_token_ids(path: Path, *, n_ctx: int, d_vocab: int) -> NDArray[np.uint16]:
    """Open a file of token ids without reading it all.

    Args:
        path: uint16 token ids.
        n_ctx: tokens of a window; the file must hold two.
        d_vocab: size of the vocabulary.

    Returns:
        (n_tokens,) memory-mapped ids, all < d_vocab.

    Raises:
        ModelError: the file is absent, of odd size, too short, or holds an id beyond the
            vocabulary.
    """
    try:
        n_bytes = path.stat().st_size
        if n_bytes % 2 or n_bytes < 4 * n_ctx:
            raise ModelError(
                f"{path} has {n_bytes:,} bytes; whole uint16 ids of at least two windows "
                f"({2 * n_ctx} tokens) were expected"
            )
        ids: NDArray[np.uint16] = np.memmap(path, np.uint16, "r")
    except OSError as err:
        raise ModelError(f"{path} cannot be read ({err.strerror}); make it again") from err
    if int(ids.max()) >= d_vocab:
        raise ModelError(
            f"{path} holds token id {int(ids.max())}; ids below d_vocab {d_vocab} were expected"
        )
    return ids


def spread_windows(ids: NDArray[np.uint16], *, n_ctx: int, n_most: int) -> NDArray[np.int64]:
    """Give windows spread evenly over a text.

    Args:
        ids: (n_tokens,) token ids.
        n_ctx: tokens predicted in a window.
        n_most: windows to give; fewer when the text is shorter.

    Returns:
        (n_windows, n_ctx + 1) token ids.
    """
    n_windows = (len(ids) - 1) // n_ctx
    n_used = min(n_windows, n_most)
    starts = n_ctx * np.linspace(0, n_windows - 1, n_used).astype(np.int64)
    rows = starts[:, None] + np.arange(n_ctx + 1)
    windows: NDArray[np.int64] = ids[rows].astype(np.int64)
    return windows


class WindowSampler:
    """The batches of a run: shuffled windows without replacement, by seed and step alone."""

    def __init__(
        self, token_ids: NDArray[np.uint16], *, n_ctx: int, batch_windows: int, seed: int
    ) -> None:
        self.token_ids = token_ids
        self.n_ctx = n_ctx
        self.batch_windows = batch_windows
        self.seed = seed
        self.n_windows = (len(token_ids) - n_ctx) // n_ctx
        self._epoch = -1
        self._starts: NDArray[np.int64] = np.empty(0, np.int64)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Give the windows of one step: (batch_windows, n_ctx + 1) token ids."""
        first = step * self.batch_windows
        starts = [self._start(at) for at in range(first, first + self.batch_windows)]
        rows = np.array(starts)[:, None] + np.arange(self.n_ctx + 1)
        return self.token_ids[rows].astype(np.int64)

    def _start(self, at: int) -> int:
        epoch, place = divmod(at, self.n_windows)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            offset = int(rng.integers(self.n_ctx))
            self._starts = offset + self.n_ctx * rng.permutation(self.n_windows)
            self._epoch = epoch
        return int(self._starts[place])
