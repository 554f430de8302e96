"""Saved sums of several parts -> the sums of the whole, saved, with few rows in memory.

1. Features are taken in ranges that together have about `n_rows` rows in all parts. Where a table is
   sorted, as it should be, only the rows of the range are looked at.
2. The rows of a range are read, added up and written to a file of their own.
3. These files, one after the other, are the table: the same bytes as if it had been held whole.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sae_core import statistics
from sae_core.errors import StoreError
from sae_core.files import reading_parquet, write_parquet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ROWS = 1 << 20  # held at once: about 150 MB while they are added up


def add_up(folders: Sequence[Path], out: Path, *, n_rows: int = ROWS) -> None:
    """Add up the sums of disjoint parts, exactly and in any order.

    Args:
        folders: as `statistics.save` wrote them, at least one.
        out: a folder; the files there are replaced.
        n_rows: rows held at once, but all those of a single feature.

    Raises:
        ValueError: there are no parts.
        StoreMismatchError: parts differ in d_sae or d_vocab.
        StoreError: a file is missing or damaged; or the disk is full.
    """
    loaded = [statistics.load(folder, pairs=False) for folder in folders]
    small = statistics.merge(loaded)
    out.mkdir(parents=True, exist_ok=True)
    statistics.save(small, out, pairs=False)
    for name in statistics.PAIRS:
        files = [folder / f"{name}.parquet" for folder in folders]
        with TemporaryDirectory(prefix=".", dir=out) as scratch:
            pieces = _write_ranges(name, files, Path(scratch), small.d_sae, n_rows)
            write_parquet(out / f"{name}.parquet", pl.scan_parquet(pieces, glob=False))


def _write_ranges(
    name: str, files: Sequence[Path], scratch: Path, d_sae: int, n_rows: int
) -> list[Path]:
    """Write the summed rows of ranges of features, a file each; give the files."""
    key = statistics.PAIRS[name][0]
    before = np.concatenate([[0], np.cumsum(sum(_counts(key, file, d_sae) for file in files))])
    pieces: list[Path] = []
    begin = 0
    while begin < d_sae:
        end = int(np.searchsorted(before, before[begin] + n_rows, side="right")) - 1
        end = min(max(end, begin + 1), d_sae)
        inside = pl.col(key).is_between(begin, end, closed="left")
        rows = [_read(file, pl.scan_parquet(file, glob=False).filter(inside)) for file in files]
        pieces.append(scratch / f"{begin:09d}.parquet")
        write_parquet(pieces[-1], statistics.summed(name, pl.concat(rows)))
        begin = end
    return pieces


def _counts(key: str, file: Path, d_sae: int) -> NDArray[np.int64]:
    """(d_sae,) rows of each feature in the file of a table."""
    found = _read(file, pl.scan_parquet(file, glob=False).group_by(key).len())
    features = found[key].to_numpy()
    if features.max(initial=0) >= d_sae:
        raise StoreError(f"{file} holds the feature {features.max()} of {d_sae}; gather again")
    counts = np.zeros(d_sae, np.int64)
    counts[features] = found["len"].to_numpy()
    return counts


def _read(file: Path, rows: pl.LazyFrame) -> pl.DataFrame:
    with reading_parquet(file):
        return rows.collect(engine="streaming")
