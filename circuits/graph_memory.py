"""How much memory a graph takes, told before it is built.

1. A run without sums is counted first: its tokens are held whole, beside a block of counts as large
   as there is room for.
2. Then the pairs that were seen often enough are held, with the numbers that evidence makes of them,
   and one shard of tokens. No table has a place for each pair of features, so that d_sae alone costs
   little.
3. When the edges are known, the tokens between their features come to it.

The bytes of a row are upper bounds of what was measured on sums of 1 to 4 million transitions with
4,096 and 131,072 features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from circuits.evidence import MIN_PAIRS
from sae_core.errors import GraphError
from sae_core.memory import free_memory, megabytes
from sae_core.running_sums import TRIAL_ENTRIES
from sae_core.store import token_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sae_core.memory import Free

LEAST = 160 << 20  # loops, threads and buffers of any graph
A_FEATURE = 1536  # its lists of tokens and its name too
A_TOKEN = 96
AN_ENTRY = 48  # a feature that fires on a token
A_COUNTED_ENTRY = 4096  # the same, while the first few are counted on trial
A_PAIR = 380  # seen often enough, with its row of what fires together
A_BETWEEN = 150  # a token between two features
IS_SEEN = pl.col("n_pairs") >= MIN_PAIRS
CLEAR_LIFT = 1.5  # edges with less are few
A_ROW = {
    "statistics/token_features.parquet": 60,
    "statistics/promoted_tokens.parquet": 60,
    "logit_effects.parquet": 200,
}


def counting_bytes(run: Path) -> int:
    """Estimate the least that counting the tokens of a run takes."""
    files = token_files(run)
    trial = A_COUNTED_ENTRY * min(sum(map(_n_entries, files)), TRIAL_ENTRIES)
    return LEAST + sum(map(_shard_bytes, files)) + trial


def graph_bytes(run: Path, d_sae: int) -> int:
    """Estimate what building the graph of a run takes, from its saved sums."""
    files = {run / name: n_bytes for name, n_bytes in A_ROW.items() if (run / name).is_file()}
    rows = sum(_n_rows(file, pl.len()) * n_bytes for file, n_bytes in files.items())
    rows += A_PAIR * _n_rows(run / "statistics/transitions.parquet", IS_SEEN.sum())
    rows += A_BETWEEN * _n_between(run / "statistics")
    largest = max(token_files(run), key=lambda file: file.stat().st_size, default=None)
    shard = 0 if largest is None else _shard_bytes(largest)
    return LEAST + A_FEATURE * d_sae + rows + shard


def between_bytes(edges: pl.DataFrame) -> int:
    """Estimate what the tokens between the features of edges take, at most."""
    return A_BETWEEN * int(edges["n_pairs"].sum())


def say_or_refuse(
    what: str,
    n_bytes: int,
    say: Callable[[str], None],
    free: Free | None = None,
    *,
    is_least: bool = False,
) -> None:
    """Say what some work takes and what is free.

    Args:
        what: the work.
        n_bytes: that it takes.
        say: is told one sentence.
        free: memory that can be taken; None asks for it.
        is_least: whether the work takes more where there is more.

    Raises:
        GraphError: it does not fit; nothing was begun.
    """
    free = free or free_memory()
    line = f"{what} takes {'at least' if is_least else 'about'} {megabytes(n_bytes)} of memory"
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


def _n_between(folder: Path) -> int:
    """Guess how many rows of tokens edges have: one for each pair far beyond chance, at most."""
    fires, totals = (
        pl.scan_parquet(folder / f"{name}.parquet", glob=False) for name in ("features", "totals")
    )
    sources = fires.select(source="feature_idx", n_source=pl.col("n_source").cast(pl.Float64))
    targets = fires.select(target="feature_idx", n_target=pl.col("n_target").cast(pl.Float64))
    pairs = pl.scan_parquet(folder / "transitions.parquet", glob=False).filter(IS_SEEN)
    lift = pl.col("n_pairs") * pl.col("total") / (pl.col("n_source") * pl.col("n_target"))
    far = (
        pairs.join(sources, on="source")
        .join(targets, on="target")
        .join(totals.select(total="n_pairs"), how="cross")
        .select(pl.col("n_pairs").filter(lift > CLEAR_LIFT).sum())
    )
    return min(_number(far), _n_rows(folder / "edge_tokens.parquet", pl.len()))


def _shard_bytes(file: Path) -> int:
    return A_TOKEN * _n_rows(file, pl.len()) + AN_ENTRY * _n_entries(file)


def _n_entries(file: Path) -> int:
    return _n_rows(file, pl.col("features").list.len().sum())


def _n_rows(file: Path, number: pl.Expr) -> int:
    return _number(pl.scan_parquet(file, glob=False).select(number))


def _number(frame: pl.LazyFrame) -> int:
    try:
        return int(frame.collect(engine="streaming").item() or 0)
    except (pl.exceptions.PolarsError, OSError):  # who reads it whole says what is wrong with it
        return 0
