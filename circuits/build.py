"""A run's sums -> its `graph/` folder, written whole; the same sums give the same bytes.

1. Sums are read from `statistics/`. A run written by another program has none: they are counted
   from `tokens/`, the documents that are not held out, and kept, with `features.parquet`. What
   either takes in memory is said first.
2. `edge_tables` turns them into edges, best first; measured effects are written beside them where
   they are handed in.
3. `graph/edges.parquet`, `graph/edge_tokens.parquet`, `graph/coactivation.parquet` and
   `graph/graph.json` (sizes, thresholds, and why there is no edge where there is none) are written.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from circuits import evidence
from circuits.edge_tables import (
    find_edges,
    read_edge_tokens,
    read_pairs,
    tables_of,
)
from circuits.effects import with_effects
from circuits.given import given_in_run
from circuits.graph_memory import between_bytes, counting_bytes, graph_bytes, say_or_refuse
from sae_core import statistics as sums
from sae_core.errors import StoreError, StoreMismatchError
from sae_core.feature_table import features_table
from sae_core.files import DirectoryLock, read_parquet, write_json, write_parquet
from sae_core.gather_memory import room_here
from sae_core.running_sums import count_into
from sae_core.store import read_manifest, read_tokens, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from circuits.effects import Measure
    from circuits.graph import FeatureGraph
    from sae_core.statistics import Statistics

GRAPH_TABLES = ("edges", "edge_tokens", "coactivation")


def build_graph(
    run: str | PathLike[str],
    *,
    measure: Measure | None = None,
    say: Callable[[str], None] | None = None,
) -> FeatureGraph:
    """Write a run's `graph/` folder and give the graph.

    Args:
        run: the run directory.
        measure: from the edges, best first, to the causal effects of some of them: source, target,
            causal, causal_stderr; `sae_core.measure_effects` measures. None leaves all effects null.
        say: is told what memory is needed, before the work.

    Returns:
        The graph; without edges, its `reason` says why.

    Raises:
        StoreError: the run is not finished, holds neither sums nor activations, is damaged, or
            another process writes it.
        GraphError: the memory does not suffice; nothing was begun.
        ValueError: what was measured lacks a column, or holds an edge twice.
    """
    from circuits.run import open_run  # noqa: PLC0415 - run.py reads what this file writes

    path = Path(run)
    manifest = read_manifest(path)
    with DirectoryLock(path):
        _write_graph(path, manifest.d_sae, measure, say or (lambda _: None))
    return open_run(path).graph


def _write_graph(
    path: Path, d_sae: int, measure: Measure | None, say: Callable[[str], None]
) -> None:
    if not sums.is_saved(path / "statistics"):
        say_or_refuse("counting the tokens", counting_bytes(path), say, is_least=True)
    ensure_counted(path)
    say_or_refuse("building the graph", graph_bytes(path, d_sae), say)
    folder = path / "statistics"
    statistics = read_pairs(folder)
    found = find_edges(statistics)
    say_or_refuse("reading the tokens of edges", between_bytes(found.edges), lambda _: None)
    statistics = read_edge_tokens(statistics, folder, found.edges)
    tables = tables_of(
        found,
        statistics,
        read_vocabulary(path),
        pl.scan_parquet(folder / "coactivation.parquet", glob=False),
        logit_effects=_logit_effects(path),
        given=given_in_run(path, statistics),
    )
    if measure and len(tables.edges):
        edges = with_effects(tables.edges, measure(tables.edges))
        tables = replace(tables, edges=edges)
    for name in GRAPH_TABLES:
        write_parquet(path / "graph" / f"{name}.parquet", getattr(tables, name))
    summary = {
        "n_edges": len(tables.edges),
        "n_measured": int(tables.edges["causal"].count()),
        "min_pairs": evidence.MIN_PAIRS,
        "max_q": evidence.MAX_Q,
        "reason": tables.reason,
    }
    write_json(path / "graph" / "graph.json", summary)


def ensure_statistics(path: Path) -> Statistics:
    """Give a run's sums; count and keep them where the run has none.

    Args:
        path: the run directory.

    Raises:
        StoreError: as of `ensure_counted`.
        StoreMismatchError: as of `ensure_counted`.
    """
    ensure_counted(path)
    return sums.load(path / "statistics")


def ensure_counted(path: Path) -> None:
    """Count a run's tokens and keep the sums, where the run has none.

    Args:
        path: the run directory.

    Raises:
        StoreError: the run is not finished, holds neither sums nor activations, or is damaged.
        StoreMismatchError: the sums are of another number of features than the manifest says.
    """
    manifest = read_manifest(path)
    if not manifest.complete:
        raise StoreError(f"{path} is not finished; run the same `circuits gather` again")
    folder, sizes = path / "statistics", (manifest.d_sae, manifest.d_vocab)
    if not sums.is_saved(folder):
        count_into(folder, read_tokens(path, held_out=False), sizes, room_here())
    found = sums.load(folder, pairs=False)
    if (found.d_sae, found.d_vocab) != sizes:
        raise StoreMismatchError(
            f"{folder} is of {found.d_sae} features and {found.d_vocab} tokens, the "
            f"manifest says {manifest.d_sae} and {manifest.d_vocab}; gather again"
        )
    if not (path / "features.parquet").is_file():
        table = features_table(found, read_vocabulary(path), _logit_effects(path))
        write_parquet(path / "features.parquet", table.rechunk())


def _logit_effects(path: Path) -> pl.DataFrame | None:
    """Read a run's logit effects, in one order whatever that of the file: they are added up."""
    file = path / "logit_effects.parquet"
    by = ["feature_idx", "token_id", "nats_per_unit"]
    return read_parquet(file).sort(by) if file.is_file() else None
