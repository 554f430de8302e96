"""A run's sums -> its `graph/` folder, written whole; the same sums give the same bytes.

1. Sums are read from `statistics/`. A run written by another program has none: they are counted
   from `tokens/`, the documents that are not held out, and kept, with `features.parquet`.
2. `evidence` turns them into edges, best first.
3. `graph/edges.parquet`, `graph/edge_tokens.parquet`, `graph/coactivation.parquet` and
   `graph/graph.json` (sizes, thresholds, and why there is no edge where there is none) are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from circuits import evidence
from sae_core import statistics as sums
from sae_core.errors import StoreError, StoreMismatchError
from sae_core.files import read_parquet, write_json, write_parquet
from sae_core.store import read_manifest, read_tokens, read_vocabulary

if TYPE_CHECKING:
    from os import PathLike

    import polars as pl

    from circuits.graph import FeatureGraph
    from sae_core.statistics import Statistics

GRAPH_TABLES = ("edges", "edge_tokens", "coactivation")


def build_graph(run: str | PathLike[str]) -> FeatureGraph:
    """Write a run's `graph/` folder and give the graph.

    Args:
        run: the run directory.

    Returns:
        The graph; without edges, its `reason` says why.

    Raises:
        StoreError: the run is not finished, holds neither sums nor activations, or is damaged.
    """
    from circuits.run import open_run  # noqa: PLC0415 - run.py reads what this file writes

    path = Path(run)
    tables = evidence.build_edges(
        ensure_statistics(path), read_vocabulary(path), logit_effects=_logit_effects(path)
    )
    for name in GRAPH_TABLES:
        write_parquet(path / "graph" / f"{name}.parquet", getattr(tables, name).rechunk())
    summary = {
        "n_edges": len(tables.edges),
        "min_pairs": evidence.MIN_PAIRS,
        "max_q": evidence.MAX_Q,
        "reason": tables.reason,
    }
    write_json(path / "graph" / "graph.json", summary)
    return open_run(path).graph


def ensure_statistics(path: Path) -> Statistics:
    """Give a run's sums; count and keep them where the run has none.

    Args:
        path: the run directory.

    Raises:
        StoreError: the run is not finished, holds neither sums nor activations, or is damaged.
        StoreMismatchError: the sums are of another number of features than the manifest says.
    """
    manifest = read_manifest(path)
    if not manifest.complete:
        raise StoreError(f"{path} is not finished; run the same `circuits gather` again")
    if sums.is_saved(path / "statistics"):
        found = sums.load(path / "statistics")
        if (found.d_sae, found.d_vocab) != (manifest.d_sae, manifest.d_vocab):
            raise StoreMismatchError(
                f"{path}/statistics is of {found.d_sae} features and {found.d_vocab} tokens, the "
                f"manifest says {manifest.d_sae} and {manifest.d_vocab}; gather again"
            )
    else:
        tokens = read_tokens(path, held_out=False)
        found = sums.collect(tokens, manifest.d_sae, manifest.d_vocab)
        sums.save(found, path / "statistics")
    if not (path / "features.parquet").is_file():
        table = sums.features_table(found, read_vocabulary(path), _logit_effects(path))
        write_parquet(path / "features.parquet", table.rechunk())
    return found


def _logit_effects(path: Path) -> pl.DataFrame | None:
    file = path / "logit_effects.parquet"
    return read_parquet(file) if file.is_file() else None
