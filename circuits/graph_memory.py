"""How much memory a graph takes, told before it is built.

1. A run without sums is counted first: its tokens are held whole, beside one block of counts.
2. Then every row of the sums' tables is held, with the numbers that evidence makes of it, and one
   shard of tokens. No table has a place for each pair of features, so that d_sae alone costs little.

The bytes of a row are upper bounds of what was measured on sums of 1 to 4 million transitions with
4,096 and 131,072 features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from sae_core.counting import BLOCK_ENTRIES
from sae_core.errors import GraphError
from sae_core.memory import free_memory, megabytes
from sae_core.store import token_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sae_core.memory import Free

LEAST = 160 << 20  # loops, threads and buffers of any graph
A_FEATURE = 1536  # its lists of tokens and its name too
A_TOKEN = 96
AN_ENTRY = 48  # a feature that fires on a token
A_COUNTED_ENTRY = 64  # the same, while its block is counted
A_ROW = {
    "statistics/transitions.parquet": 320,
    "statistics/edge_tokens.parquet": 150,
    "statistics/coactivation.parquet": 60,
    "statistics/token_features.parquet": 60,
    "statistics/promoted_tokens.parquet": 60,
    "logit_effects.parquet": 200,
}


def counting_bytes(run: Path) -> int:
    """Estimate what counting the tokens of a run takes."""
    files = token_files(run)
    block = A_COUNTED_ENTRY * min(sum(map(_n_entries, files)), BLOCK_ENTRIES)
    return LEAST + sum(map(_shard_bytes, files)) + block


def graph_bytes(run: Path, d_sae: int) -> int:
    """Estimate what building the graph of a run takes, from the rows of its sums."""
    files = {run / name: n_bytes for name, n_bytes in A_ROW.items() if (run / name).is_file()}
    rows = sum(_n_rows(file, pl.len()) * n_bytes for file, n_bytes in files.items())
    largest = max(token_files(run), key=lambda file: file.stat().st_size, default=None)
    shard = 0 if largest is None else _shard_bytes(largest)
    return LEAST + A_FEATURE * d_sae + rows + shard


def say_or_refuse(
    what: str, n_bytes: int, say: Callable[[str], None], free: Free | None = None
) -> None:
    """Say what some work takes and what is free.

    Args:
        what: the work.
        n_bytes: that it takes.
        say: is told one sentence.
        free: memory that can be taken; None asks for it.

    Raises:
        GraphError: it does not fit; nothing was begun.
    """
    free = free or free_memory()
    line = f"{what} takes about {megabytes(n_bytes)} of memory"
    if free is None:
        say(f"{line}.")
        return
    left = f"{free.limit} leaves {megabytes(free.n_bytes)}"
    if n_bytes > free.n_bytes:
        raise GraphError(
            f"{line}, and {left}; gather less text or fewer features, or raise the limit; nothing "
            "was begun, and what was finished is kept"
        )
    say(f"{line}; {left}.")


def _shard_bytes(file: Path) -> int:
    return A_TOKEN * _n_rows(file, pl.len()) + AN_ENTRY * _n_entries(file)


def _n_entries(file: Path) -> int:
    return _n_rows(file, pl.col("features").list.len().sum())


def _n_rows(file: Path, number: pl.Expr) -> int:
    try:
        return int(pl.scan_parquet(file, glob=False).select(number).collect().item() or 0)
    except (pl.exceptions.PolarsError, OSError):  # who reads it whole says what is wrong with it
        return 0
