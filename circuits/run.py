"""Run: a run directory opened for reading; what is asked for is loaded then, and kept.

Nothing here needs a model: text is rebuilt from the tokens, features and graph come from their
tables.
"""

from __future__ import annotations

import hashlib
import operator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from circuits.automata_files import read_automata, read_index
from circuits.build import GRAPH_TABLES, ensure_statistics
from circuits.graph import FeatureGraph
from circuits.graph_files import check_columns, read_graph_table
from sae_core.errors import GraphError, StoreError
from sae_core.files import read_json, read_parquet, sha256_of
from sae_core.store import (
    MANIFEST,
    Manifest,
    read_documents,
    read_manifest,
    read_tokens,
    read_vocabulary,
    token_files,
)

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from circuits.automaton import FeatureAutomaton
    from sae_core.schema import TokenTable
    from sae_core.statistics import Statistics

NO_NAME = "unknown"


def open_run(path: str | PathLike[str]) -> Run:
    """Open a run directory for reading.

    Args:
        path: the run directory.

    Raises:
        StoreError: it is no run, or its manifest is damaged or from a newer version.
    """
    run = Path(path)
    return Run(run, read_manifest(run))


class Run:
    """One analysis: its tokens, features, graph and automata."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def __repr__(self) -> str:
        """Say which run it is."""
        return f"Run({str(self.path)!r}, {self.manifest.d_sae} features)"

    @cached_property
    def hash(self) -> str:
        """Short hash of what the run was made from: the manifest, the text and the vocabulary."""
        digest = hashlib.sha256()
        for name in (MANIFEST, "documents.parquet", "vocabulary.parquet"):
            digest.update(sha256_of(self.path / name).encode())
        return digest.hexdigest()[:16]

    @property
    def model_name(self) -> str:
        """Name of the model, or `unknown` for a run made elsewhere."""
        return str(self.manifest.settings.get("model", NO_NAME))

    @property
    def sae_name(self) -> str:
        """Name of the dictionary, or `unknown` for a run made elsewhere."""
        return str(self.manifest.settings.get("sae", NO_NAME))

    @cached_property
    def documents(self) -> pl.DataFrame:
        """doc_id, source, sha256, n_bytes, n_tokens, held_out."""
        return read_documents(self.path)

    @cached_property
    def vocabulary(self) -> pl.DataFrame:
        """token_id, token_bytes, token_str."""
        return read_vocabulary(self.path)

    @cached_property
    def statistics(self) -> Statistics:
        """The sums over the documents that are not held out; counted when the run has none."""
        return ensure_statistics(self.path)

    @cached_property
    def features(self) -> pl.DataFrame:
        """One row a feature; columns of `features.parquet`."""
        file = self.path / "features.parquet"
        if not file.is_file():
            ensure_statistics(self.path)
        return read_parquet(file)

    @cached_property
    def mean_acts(self) -> NDArray[np.float64]:
        """(d_sae,) mean activation of each feature where it fires; 0 where it never does."""
        means = np.zeros(self.manifest.d_sae)
        means[self.features["feature_idx"].to_numpy()] = self.features["mean_act"].to_numpy()
        return means

    @cached_property
    def graph(self) -> FeatureGraph:
        """The feature graph.

        Raises:
            GraphError: it is not built yet.
            StoreError: a table is damaged, or was edited into none of this run.
        """
        folder = self.path / "graph"
        if not all((folder / f"{name}.parquet").is_file() for name in GRAPH_TABLES):
            raise GraphError(f"{self.path} has no graph; run `circuits graph {self.path}` first")
        edges, edge_tokens, coactivation = (
            partial(read_graph_table, self.path, name, self.manifest.d_sae) for name in GRAPH_TABLES
        )
        check_columns(self.path, "coactivation")  # large and seldom asked for: read when it is
        summary = folder / "graph.json"
        return FeatureGraph(
            self.features,
            edges(),
            edge_tokens(),
            coactivation=coactivation,
            automata=self.automata_index,
            reason=str(read_json(summary).get("reason", "")) if summary.is_file() else "",
            run=self,
        )

    @cached_property
    def automata(self) -> tuple[FeatureAutomaton, ...]:
        """The automata, best first; none when they were not looked for.

        Raises:
            StoreError: a file is missing, damaged or edited into no automaton of this run.
        """
        found = read_automata(self.path, self.manifest.d_sae)
        return tuple(automaton.with_run(self) for automaton in found)

    @cached_property
    def automata_index(self) -> pl.DataFrame | None:
        """The table of the automata; None when they were not looked for."""
        return read_index(self.path)

    def tokens(self, *, held_out: bool | None = None) -> TokenTable:
        """Read the tokens in text order, with the features that fire on each.

        Args:
            held_out: True gives the held-out documents only, False the others, None all.

        Raises:
            StoreError: the run keeps no activations, or a shard is damaged.
        """
        return read_tokens(self.path, held_out=held_out)

    def document(self, doc_id: int) -> bytes:
        """Rebuild the text of one document from its tokens.

        Raises:
            ValueError: there is no such document.
            StoreError: a shard is damaged.
        """
        known = self.documents["doc_id"]
        try:
            wanted = operator.index(doc_id)
        except TypeError:
            raise ValueError(f"{doc_id!r} is no document id; {_range(known)}") from None
        if wanted not in known:
            raise ValueError(f"there is no document {wanted}; {_range(known)}")
        pieces = [_ids_of(file, wanted) for file in token_files(self.path)]
        table = self.vocabulary.sort("token_id")["token_bytes"].to_list()
        return b"".join(table[token] for piece in pieces for token in piece)


def _range(doc_ids: pl.Series) -> str:
    low: Any = doc_ids.min()
    high: Any = doc_ids.max()
    return "the run has no documents" if low is None else f"ids are {low}..{high}"


def _ids_of(file: Path, doc_id: int) -> list[int]:
    try:
        rows = pl.scan_parquet(file, glob=False).filter(pl.col("doc_id") == doc_id)
        ids: list[int] = rows.select("token_id").collect()["token_id"].to_list()
    except (pl.exceptions.PolarsError, OSError) as err:
        raise StoreError(f"{file} is not a whole token shard; run `circuits verify`") from err
    return ids
