"""How much memory a training takes, told before it starts, and how many rows fit through at once.

1. What stays: weights, moments, and the block of activations that batches are drawn from.
2. What comes and goes: copies for a checkpoint, the gradients of dense steps, a batch.
3. What each row of a batch costs while its hidden layer is computed. Fewer rows at once give the
   same result up to rounding, so that these are what is saved first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sae_core.errors import SaeError
from sae_core.learner import AUX_ROWS
from sae_core.memory import free_memory, megabytes
from sae_core.objectives import LEVELS
from sae_core.screening import LEAST_FEATURES, has_bfloat16_products
from sae_core.sparse_engine import DENSE, DENSE_VALUES
from sae_core.sparsify import SLAB_ROWS
from sae_core.train_settings import UNAIDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from sae_core.memory import Free
    from sae_core.train_settings import TrainSaeConfig

FLOAT = 4  # bytes
ENTRY = 8  # bytes of a feature that is kept: its number and its activation
N_PARTS = 3  # weights, and Adam's two moments
N_COPIES = 2  # of all parts, while a checkpoint is written
LEAST_ROWS = 256  # at once; with fewer, dense steps would take hours
DENSE_ENTRY = 44  # bytes of one that fires in a dense step: numbers, value, slope, copies
N_DENSE = 7  # tensors like the encoder that a dense step makes
ADVICE = "take fewer features, or fewer --block-windows, or raise the limit"


class Need(NamedTuple):
    """Bytes of a training."""

    lasting: int
    """From the first step to the last."""

    passing: int
    """At most beside that, rows left out."""

    a_row: int
    """For each row of a batch that goes through at once."""

    n_rows: int
    """Rows that go through at once where memory is ample."""

    def total(self, n_rows: int) -> int:
        """Give all of it together, with so many rows of a batch at once."""
        return self.lasting + self.passing + self.a_row * n_rows


def training_need(configs: Iterable[TrainSaeConfig], *, n_block: int) -> Need:
    """Estimate what the trainings of one pass take.

    Args:
        configs: settings of each; they share their batches.
        n_block: bytes of the block of activations that batches are drawn from.
    """
    needs = [_need_of(config) for config in configs]
    return Need(
        lasting=n_block + sum(need.lasting for need in needs),
        passing=max(need.passing for need in needs),  # one dictionary after the other
        a_row=sum(need.a_row for need in needs),  # each keeps its own room
        n_rows=needs[0].n_rows,
    )


def block_bytes(config: TrainSaeConfig, *, n_tokens: int, n_ctx: int) -> int:
    """Give the bytes of the block of activations that batches are drawn from.

    Args:
        config: of the training.
        n_tokens: tokens of the text.
        n_ctx: tokens of a window.
    """
    n_windows = min(config.block_windows, (n_tokens - n_ctx) // n_ctx)
    return FLOAT * n_windows * n_ctx * config.d_in


def rows_at_once(
    configs: Iterable[TrainSaeConfig],
    n_block: int,
    device: torch.device,
    say: Callable[[str], None],
) -> int | None:
    """Say what memory is needed; give the rows that may go through at once, None for all.

    Args:
        configs: settings of each training of one pass.
        n_block: bytes of the block of activations that batches are drawn from.
        device: where the training runs; a GPU's memory is tried instead.
        say: is told one line.

    Raises:
        SaeError: not even a few rows fit; nothing was begun.
    """
    if device.type != "cpu":
        return None
    need = training_need(configs, n_block=n_block)
    n_rows = rows_that_fit(need, free_memory(), say)
    return None if n_rows == need.n_rows else n_rows


def rows_that_fit(need: Need, free: Free | None, say: Callable[[str], None]) -> int:
    """Say what is needed and what is free; give how many rows of a batch may go through at once.

    Args:
        need: of the training.
        free: memory that can be taken; None where that is not known.
        say: is told one line.

    Raises:
        SaeError: not even a few rows fit; nothing was begun.
    """
    line = f"about {megabytes(need.total(need.n_rows))} of memory is needed"
    if free is None:
        say(line)
        return need.n_rows
    least = need.total(min(need.n_rows, LEAST_ROWS))
    if least > free.n_bytes:
        raise SaeError(
            f"the training needs {megabytes(least)} of memory at the least, and {free.limit} leaves "
            f"{megabytes(free.n_bytes)}; {ADVICE}; nothing was begun, and what was finished is kept"
        )
    n_rows = min(need.n_rows, (free.n_bytes - need.total(0)) // need.a_row)
    line += f", {free.limit} leaves {megabytes(free.n_bytes)}"
    if n_rows < need.n_rows:
        line += (
            f": {n_rows} rows of a batch at a time instead of {need.n_rows}, with the same result "
            "up to rounding"
        )
    say(line)
    return n_rows


def _need_of(config: TrainSaeConfig) -> Need:
    """Estimate one dictionary's part."""
    d_sae, weights = config.d_sae, FLOAT * config.d_in * config.d_sae
    state = N_PARTS * (2 * weights + FLOAT * (d_sae + config.d_in)) + 2 * ENTRY * d_sae
    is_screened = d_sae >= LEAST_FEATURES and has_bfloat16_products()
    n_levels = len(LEVELS) if config.variant == "matryoshka" else 1
    passing = FLOAT * config.batch_size * config.d_in * (3 + 2 * n_levels)
    if config.variant not in UNAIDED and config.aux_coefficient > 0:
        passing += 2 * FLOAT * config.batch_size // AUX_ROWS * d_sae
    copies = N_COPIES * state
    if config.k is None or config.k > DENSE * d_sae:
        n_values = config.batch_size * d_sae
        dense = 2 * FLOAT * min(n_values, DENSE_VALUES) + N_DENSE * weights
        copies = max(copies, dense + DENSE_ENTRY * n_values // 2)  # half of all fire at the start
    n_kept = config.k if config.variant == "topk" and config.k else d_sae
    return Need(
        lasting=state + (weights // 2 if is_screened else 0),
        passing=passing + copies,
        a_row=FLOAT * d_sae + ENTRY * n_kept,
        n_rows=min(config.batch_size, SLAB_ROWS),
    )
