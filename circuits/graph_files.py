"""The tables of a run's `graph/`, read back: one that was edited or damaged is named with the place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from circuits.edge_tables import EDGE_SCHEMA
from sae_core.errors import StoreError
from sae_core.files import read_parquet, reading_parquet
from sae_core.store import as_table

if TYPE_CHECKING:
    from pathlib import Path

LATER = "predicted_in_context"  # a column that earlier graphs have not
KEY = ("source", "target", "score")
SCHEMAS: dict[str, dict[str, Any]] = {
    "edges": {name: kind for name, kind in EDGE_SCHEMA.items() if name != LATER},
    "edge_tokens": {
        "source": pl.UInt32, "target": pl.UInt32, "token_id": pl.UInt32, "token_str": pl.String,
        "n_pairs": pl.Int64, "share": pl.Float64,
    },
    "coactivation": {"feature_a": pl.UInt32, "feature_b": pl.UInt32, "n_both": pl.Int64},
}  # fmt: skip


def read_graph_table(run: Path, name: str, d_sae: int) -> pl.DataFrame:
    """Read one table of a run's graph.

    Args:
        run: the run directory.
        name: edges, edge_tokens or coactivation.
        d_sae: number of features of the run.

    Returns:
        The table, its known columns in their types.

    Raises:
        StoreError: it is damaged, lacks a column, names a feature that the run has not, or holds a
            number that is not finite; file, row and column are named.
    """
    file = run / "graph" / f"{name}.parquet"
    frame = read_parquet(file)
    known = as_table(frame, file, SCHEMAS[name])
    for column in known:
        _refuse_misfit(column, file, f"run `circuits graph {run}` again", d_sae)
    return frame.with_columns(known.get_columns())


def check_columns(run: Path, name: str) -> None:
    """Look at the columns of one table of a run's graph, without reading its rows.

    Raises:
        StoreError: it is damaged, or lacks a column.
    """
    file = run / "graph" / f"{name}.parquet"
    with reading_parquet(file):
        none = pl.scan_parquet(file, glob=False).head(0).collect()
    as_table(none, file, SCHEMAS[name])


def _refuse_misfit(column: pl.Series, file: Path, remedy: str, d_sae: int) -> None:
    missing = column.is_null() & (column.name in KEY)
    if column.dtype.is_float():
        wrong, expected = missing | ~column.is_finite(), "a finite number"
    elif column.name in ("source", "target", "feature_a", "feature_b"):
        wrong, expected = missing | (column >= d_sae), f"a feature, 0..{d_sae - 1}"
    else:
        return
    at = wrong.fill_null(value=False).arg_true()
    if len(at):
        raise StoreError(
            f"{file}: {column.name} of row {at[0]} is {column[int(at[0])]}; expected {expected}; "
            f"{remedy}"
        )
