"""Mergeable sums: how often features fire, follow each other and promote what came.

1. Cut the tokens at window ends into blocks of bounded size; no pair crosses a window.
2. Count each block exactly: counts as int64, nats and activations as int64 fixed point (2^-20).
3. Add the blocks. Sums of integers do not depend on order, threads or machines: same text, same
   bytes.

Files under `statistics/`, each sorted by its key columns, all read by any Parquet reader:

| file | columns |
|---|---|
| totals.parquet | d_sae, d_vocab, n_tokens, n_pairs, n_lag_pairs, promotion_threshold, nats_unit |
| features.parquet | feature_idx, n_fires, n_source, n_target, act_sum, act_max, n_promoted_source |
| transitions.parquet | source, target, n_pairs, n_promoted, nats, n_lagged (maybe only this) |
| edge_tokens.parquet | source, target, token_id (the one at p + 1), n_pairs, n_promoted |
| coactivation.parquet | feature_a < feature_b, n_both |
| token_features.parquet | feature_idx, token_id (the one it fires on), n_fires |
| token_counts.parquet | token_id, n_tokens |
| promoted_tokens.parquet | feature_idx, token_id, n_promoted, nats |
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sae_core.counting import count_block, find_blocks
from sae_core.errors import StoreError, StoreMismatchError
from sae_core.files import read_parquet, reading_parquet, write_parquet

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sae_core.schema import TokenTable

NATS_UNIT = 2**20  # one nat, or one unit of activation, in fixed point: exact sums up to 8.8e12
PROMOTION_THRESHOLD = 0.1  # nats; a token 10 % likelier than without the feature
MIN_LAG, MAX_LAG = 5, 20  # tokens: past a phrase, within its topic
WRITERS = 2  # files written at once; two of them are large
_KEYS = {
    "transitions": ["source", "target"],
    "edge_tokens": ["source", "target", "token_id"],
    "coactivation": ["feature_a", "feature_b"],
    "token_features": ["feature_idx", "token_id"],
    "promoted_tokens": ["feature_idx", "token_id"],
}
_SUMS = {
    "transitions": ["n_pairs", "n_promoted", "nats", "n_lagged"],
    "edge_tokens": ["n_pairs", "n_promoted"],
    "coactivation": ["n_both"],
    "token_features": ["n_fires"],
    "promoted_tokens": ["n_promoted", "nats"],
}
PAIRS = {name: _KEYS[name] for name in ("transitions", "edge_tokens", "coactivation")}
_PER_FEATURE = ["n_fires", "n_source", "n_target", "act_sum", "act_max", "n_promoted_source"]


@dataclass(frozen=True)
class Statistics:
    """Sums over a token stream that add up over its parts; see the module's table of files."""

    n_tokens: int
    """Tokens seen."""

    n_pairs: int
    """Positions p with a successor p + 1 in the same document and window."""

    n_lag_pairs: int
    """Pairs (p, p + lag) in one window, summed over the lags 5..20."""

    n_fires: NDArray[np.int64]
    """(d_sae,) tokens on which each feature fires."""

    n_source: NDArray[np.int64]
    """(d_sae,) of those, tokens with a successor."""

    n_target: NDArray[np.int64]
    """(d_sae,) of those, tokens with a predecessor."""

    act_sum: NDArray[np.int64]
    """(d_sae,) sum of activations, units of 2^-20."""

    act_max: NDArray[np.float32]
    """(d_sae,) largest activation."""

    n_promoted_source: NDArray[np.int64]
    """(d_sae,) positions where the feature promotes the token that comes, above the threshold."""

    token_counts: NDArray[np.int64]
    """(d_vocab,) occurrences of each token."""

    transitions: pl.DataFrame
    edge_tokens: pl.DataFrame
    coactivation: pl.DataFrame
    token_features: pl.DataFrame
    promoted_tokens: pl.DataFrame

    @property
    def n_bytes(self) -> int:
        """Memory of the tables."""
        return sum(int(getattr(self, name).estimated_size()) for name in _KEYS)

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return len(self.n_fires)

    @property
    def d_vocab(self) -> int:
        """Number of vocabulary entries."""
        return len(self.token_counts)


def collect(tokens: TokenTable, d_sae: int, d_vocab: int, *, device: str = "cpu") -> Statistics:
    """Count a token stream.

    Args:
        tokens: in text order.
        d_sae: number of features.
        d_vocab: number of vocabulary entries.
        device: where pairs are counted: `cpu`, `cuda` or `cuda:N`; the sums are equal.

    Returns:
        Sums that are equal to those of the stream's parts, cut at any window end, merged.

    Raises:
        StoreError: an id is out of range, a token's features do not ascend, an activation is not
            above 0, or a number is not finite; the token is named.
        ModelError: there is no such GPU.
    """
    blocks = find_blocks(tokens)
    parts = [_statistics_of(tokens, block, (d_sae, d_vocab), device) for block in blocks]
    return merge(parts)


def merge(parts: list[Statistics]) -> Statistics:
    """Add up the sums of disjoint parts, exactly and in any order.

    Raises:
        ValueError: there are no parts.
        StoreMismatchError: parts differ in d_sae or d_vocab.
    """
    if not parts:
        raise ValueError("merge needs at least one part, got none")
    for part in parts[1:]:
        if (part.d_sae, part.d_vocab) != (parts[0].d_sae, parts[0].d_vocab):
            raise StoreMismatchError(
                f"one part has {part.d_sae} features and {part.d_vocab} tokens, another "
                f"{parts[0].d_sae} and {parts[0].d_vocab}; merge runs of one model and SAE"
            )
    if len(parts) == 1:
        return parts[0]
    merged: dict[str, Any] = {}
    for name in (field.name for field in fields(Statistics)):
        merged[name] = _merged_field(name, [getattr(part, name) for part in parts])
    return Statistics(**merged)


def save(statistics: Statistics, folder: Path, *, pairs: bool = True) -> None:
    """Write the sums to Parquet files, each whole or not at all; equal sums give equal bytes.

    Args:
        statistics: the sums.
        folder: of the files.
        pairs: whether the tables of pairs of features are written too.
    """

    def write(table: tuple[str, pl.DataFrame]) -> None:
        name, frame = table
        write_parquet(folder / f"{name}.parquet", frame)

    with ThreadPoolExecutor(WRITERS) as pool:  # compressing keeps one core busy a file
        frames = _frames(statistics)
        list(pool.map(write, ((k, v) for k, v in frames.items() if pairs or k not in PAIRS)))


def load(folder: Path, *, pairs: bool = True) -> Statistics:
    """Read sums written by `save`.

    Args:
        folder: of the files.
        pairs: whether the tables of pairs of features are read; False leaves them empty.

    Raises:
        StoreError: a file is missing or damaged, or was made with another threshold.
    """
    total = read_parquet(folder / "totals.parquet").row(0, named=True)
    if (total["promotion_threshold"], total["nats_unit"]) != (PROMOTION_THRESHOLD, NATS_UNIT):
        raise StoreError(
            f"{folder}/totals.parquet was made with a promotion threshold of "
            f"{total['promotion_threshold']} nats in units of 1/{total['nats_unit']}, this program "
            f"counts with {PROMOTION_THRESHOLD} and 1/{NATS_UNIT}; gather again"
        )
    per_feature = read_parquet(folder / "features.parquet")
    columns: dict[str, Any] = {name: per_feature[name].to_numpy() for name in _PER_FEATURE}
    tables: dict[str, Any] = {
        name: read_parquet(folder / f"{name}.parquet")
        if pairs or name not in PAIRS
        else _empty_frame(name)
        for name in _KEYS
    }
    return Statistics(
        n_tokens=total["n_tokens"],
        n_pairs=total["n_pairs"],
        n_lag_pairs=total["n_lag_pairs"],
        token_counts=read_parquet(folder / "token_counts.parquet")["n_tokens"].to_numpy(),
        **columns,
        **tables,
    )


def read_rows(folder: Path, name: str, where: pl.Expr) -> pl.DataFrame:
    """Read some rows of a saved table of pairs; see `load`."""
    file = folder / f"{name}.parquet"
    with reading_parquet(file):
        return pl.scan_parquet(file, glob=False).filter(where).collect(engine="streaming")


def read_among(folder: Path, name: str, pairs: pl.DataFrame) -> pl.DataFrame:
    """Read the rows of a saved table of pairs that are of these pairs of features; see `load`.

    Args:
        folder: of the files.
        name: of the table.
        pairs: the table's first two columns, each pair once.

    Returns:
        The rows, sorted.
    """
    file = folder / f"{name}.parquet"
    with reading_parquet(file):
        rows = pl.scan_parquet(file, glob=False).join(pairs.lazy(), on=pairs.columns, how="semi")
        return rows.collect(engine="streaming").sort(_KEYS[name])


def read_largest(folder: Path, name: str, column: str) -> pl.DataFrame:
    """Read the row of a saved table of pairs whose column is largest; none of an empty table."""
    file = folder / f"{name}.parquet"
    with reading_parquet(file):
        return pl.scan_parquet(file, glob=False).top_k(1, by=column).collect(engine="streaming")


def is_saved(folder: Path) -> bool:
    """Say whether `folder` holds every file that `load` reads."""
    names = ["totals", "features", "token_counts", *_KEYS]
    return all((folder / f"{name}.parquet").is_file() for name in names)


def empty_statistics(d_sae: int, d_vocab: int) -> Statistics:
    """Give the sums over no text."""
    zeros: dict[str, Any] = {name: np.zeros(d_sae, np.int64) for name in _PER_FEATURE}
    zeros["act_max"] = np.zeros(d_sae, np.float32)
    frames: dict[str, Any] = {name: _empty_frame(name) for name in _KEYS}
    counts = np.zeros(d_vocab, np.int64)
    return Statistics(n_tokens=0, n_pairs=0, n_lag_pairs=0, token_counts=counts, **zeros, **frames)


def _empty_frame(name: str) -> pl.DataFrame:
    kinds = dict.fromkeys(_KEYS[name], pl.UInt32) | dict.fromkeys(_SUMS[name], pl.Int64)
    return pl.DataFrame(schema=kinds)


def _statistics_of(
    tokens: TokenTable, block: slice, sizes: tuple[int, int], device: str
) -> Statistics:
    d_sae, d_vocab = sizes
    if block.stop == block.start:
        return empty_statistics(d_sae, d_vocab)
    counted = count_block(
        tokens,
        block,
        d_sae=d_sae,
        d_vocab=d_vocab,
        lags=(MIN_LAG, MAX_LAG),
        threshold=PROMOTION_THRESHOLD,
        unit=NATS_UNIT,
        device=device,
    )
    for name in _KEYS:
        counted[name] = counted[name].select(_empty_frame(name).columns)
    return Statistics(**counted)


def _merged_field(name: str, values: list[Any]) -> Any:
    if name in _KEYS:
        return summed(name, pl.concat(values))
    if name == "act_max":
        return reduce(np.maximum, values)
    return reduce(lambda a, b: a + b, values)


def summed(name: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Add up rows of a table with equal keys.

    Args:
        name: of the table.
        rows: sorted runs, which a stable sort merges.

    Returns:
        One row a key, sorted.
    """
    keys, sums = _KEYS[name], _SUMS[name]
    if not len(rows):
        return rows
    columns = [rows[key].to_numpy().astype(np.uint64) for key in keys]
    sizes = [int(column.max()) + 1 for column in columns]
    assert math.prod(sizes) < 1 << 64, "131,072 features twice and 131,072 tokens take 51 bits"
    packed = np.zeros(len(rows), np.uint64)
    for column, size in zip(columns, sizes, strict=True):
        packed = packed * np.uint64(size) + column
    order = np.argsort(packed, kind="stable")
    packed = packed[order]
    starts = np.flatnonzero(np.concatenate(([True], packed[1:] != packed[:-1])))
    totals = {name: np.add.reduceat(rows[name].to_numpy()[order], starts) for name in sums}
    return rows.select(keys)[order[starts]].with_columns(pl.Series(k, v) for k, v in totals.items())


def _frames(statistics: Statistics) -> dict[str, pl.DataFrame]:
    frames = {name: getattr(statistics, name) for name in _KEYS}
    totals = {
        "d_sae": statistics.d_sae,
        "d_vocab": statistics.d_vocab,
        "n_tokens": statistics.n_tokens,
        "n_pairs": statistics.n_pairs,
        "n_lag_pairs": statistics.n_lag_pairs,
        "promotion_threshold": PROMOTION_THRESHOLD,
        "nats_unit": NATS_UNIT,
    }
    per_feature = pl.DataFrame({name: getattr(statistics, name) for name in _PER_FEATURE})
    ids = pl.Series("feature_idx", np.arange(statistics.d_sae, dtype=np.uint32))
    tokens = {
        "token_id": np.arange(statistics.d_vocab, dtype=np.uint32),
        "n_tokens": statistics.token_counts,
    }
    return frames | {
        "totals": pl.DataFrame([totals]),
        "features": per_feature.insert_column(0, ids),
        "token_counts": pl.DataFrame(tokens),
    }
