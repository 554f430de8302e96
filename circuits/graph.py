"""FeatureGraph: features as nodes, evidence as directed edges; row = source, column = target.

The tables are polars frames with the columns of the run directory's `graph/*.parquet`; walks use
the edges in compressed rows. Self-loops and cycles are everywhere, so nothing here assumes an order
of the nodes.
"""

from __future__ import annotations

import operator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from scipy import sparse

from circuits.sql import DEFAULT_LIMIT, query_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import networkx as nx
    from numpy.typing import NDArray

    from circuits.run import Run

MAX_PATHS = 100  # more are not read one by one
UNREACHED = np.iinfo(np.int64).max


class FeatureGraph:
    """A directed graph of features."""

    def __init__(
        self,
        nodes: pl.DataFrame,
        edges: pl.DataFrame,
        edge_tokens: pl.DataFrame,
        *,
        coactivation: pl.DataFrame | Callable[[], pl.DataFrame] | None = None,
        automata: pl.DataFrame | None = None,
        reason: str = "",
        run: Run | None = None,
    ) -> None:
        self.nodes = nodes
        """One row a feature; columns of `features.parquet`."""
        self.edges = edges
        """One row an edge, best first; columns of `graph/edges.parquet`."""
        self.edge_tokens = edge_tokens
        """One row an edge and token; columns of `graph/edge_tokens.parquet`."""
        self._coactivation = coactivation
        self.automata = automata if automata is not None else pl.DataFrame({"name": []})
        """One row an automaton; columns of `automata/index.parquet`."""
        self.reason = reason
        """Why there are no edges; empty when there are."""
        self.run = run
        """The run it was made from, if it is known."""

    def __repr__(self) -> str:
        """Say how large it is."""
        return f"FeatureGraph({len(self.nodes)} features, {len(self.edges)} edges)"

    @cached_property
    def coactivation(self) -> pl.DataFrame:
        """One row a pair of features on one token; columns of `graph/coactivation.parquet`."""
        given = self._coactivation
        if given is None:
            return pl.DataFrame()
        return given() if callable(given) else given

    @cached_property
    def d_sae(self) -> int:
        """One more than the largest feature index."""
        largest: Any = self.nodes["feature_idx"].max()
        return 0 if largest is None else int(largest) + 1

    def successors(self, feature: int) -> pl.DataFrame:
        """Give the edges that leave a feature, best first.

        Raises:
            ValueError: there is no such feature.
        """
        return self.edges.filter(pl.col("source") == self.check(feature))

    def predecessors(self, feature: int) -> pl.DataFrame:
        """Give the edges that enter a feature, best first.

        Raises:
            ValueError: there is no such feature.
        """
        return self.edges.filter(pl.col("target") == self.check(feature))

    def tokens(self, source: int, target: int) -> pl.DataFrame:
        """Give the tokens through which source leads to target, best first; none without an edge.

        Raises:
            ValueError: there is no such feature.
        """
        is_edge = (pl.col("source") == self.check(source)) & (
            pl.col("target") == self.check(target)
        )
        return self.edge_tokens.filter(is_edge)

    def with_token(self, token: str, *, strip: bool = False) -> pl.DataFrame:
        """Give the edges that run through a token, best edge first.

        Args:
            token: the printable form, matched exactly.
            strip: match tokens with leading spaces too.

        Returns:
            Rows of `edge_tokens` with the edge's score.
        """
        text = pl.col("token_str").str.strip_chars_start(" ") if strip else pl.col("token_str")
        found = self.edge_tokens.filter(text == (token.lstrip(" ") if strip else token))
        scores = self.edges.select("source", "target", "score")
        return found.join(scores, on=["source", "target"], how="left", maintain_order="left")

    def paths(
        self, source: int, target: int, *, max_length: int = 4, limit: int = MAX_PATHS
    ) -> list[tuple[int, ...]]:
        """Find paths without repeated features, shortest first, then by the best edges first.

        Args:
            source: the first feature.
            target: the last feature; the same as `source` asks for cycles through it.
            max_length: greatest number of edges, >= 1.
            limit: give at most this many paths.

        Returns:
            Features of each path, ends included.

        Raises:
            ValueError: there is no such feature, or a number is below 1.
        """
        source, target = self.check(source), self.check(target)
        if max_length < 1 or limit < 1:
            raise ValueError(f"max_length and limit must be >= 1, got {max_length} and {limit}")
        distance = self._distances_to(target, max_length)
        found: list[tuple[int, ...]] = []
        for length in range(1, max_length + 1):
            for path in self._walk((source,), target, length, distance):
                found.append(path)
                if len(found) == limit:
                    return found
        return found

    def subgraph(self, features: Iterable[int]) -> FeatureGraph:
        """Give the graph of some features and the edges between them.

        Raises:
            ValueError: one of them does not exist.
        """
        kept = pl.Series([self.check(i) for i in features], dtype=pl.UInt32).implode()
        inside = pl.col("source").is_in(kept) & pl.col("target").is_in(kept)
        pairs = self.coactivation
        if not pairs.is_empty():
            pairs = pairs.filter(pl.col("feature_a").is_in(kept), pl.col("feature_b").is_in(kept))
        return FeatureGraph(
            self.nodes.filter(pl.col("feature_idx").is_in(kept)),
            self.edges.filter(inside),
            self.edge_tokens.filter(inside),
            coactivation=pairs,
            automata=self.automata,
            run=self.run,
        )

    def sql(self, text: str, *, limit: int = DEFAULT_LIMIT) -> pl.DataFrame:
        """Run one SELECT over the tables nodes, edges, edge_tokens and automata.

        Args:
            text: the query; it can read these tables and nothing else.
            limit: give at most this many rows.

        Raises:
            GraphError: not one SELECT, a write, a file, a syntax error, an unknown table or column.
        """
        tables = {
            "nodes": self.nodes,
            "edges": self.edges,
            "edge_tokens": self.edge_tokens,
            "automata": self.automata,
        }
        return query_tables(tables, text, limit=limit)

    def adjacency(self, weight: str = "score") -> sparse.csr_array:
        """Give a column of the edges as a (d_sae, d_sae) matrix; row = source, column = target."""
        rows, columns = (self.edges[name].to_numpy() for name in ("source", "target"))
        values = self.edges[weight].cast(pl.Float64).fill_null(0.0).to_numpy()
        return sparse.csr_array((values, (rows, columns)), shape=(self.d_sae, self.d_sae))

    def to_networkx(self) -> nx.DiGraph:
        """Give the graph as a networkx DiGraph; nodes and edges carry their tables' columns."""
        import networkx as nx  # noqa: PLC0415 - heavy, and only this needs it

        graph = nx.DiGraph()
        for row in self.nodes.rows(named=True):
            graph.add_node(row.pop("feature_idx"), **row)
        tokens = self.edge_tokens.group_by(["source", "target"], maintain_order=True).agg(
            pl.col("token_str").head(5).alias("tokens")
        )
        edges = self.edges.join(tokens, on=["source", "target"], how="left", maintain_order="left")
        for row in edges.rows(named=True):
            graph.add_edge(row.pop("source"), row.pop("target"), **row)
        return graph

    def check(self, feature: int) -> int:
        """Give a feature index that exists as an int.

        Raises:
            ValueError: it is no integer or no feature of the graph; the message gives the range.
        """
        try:
            found = operator.index(feature)
        except TypeError:
            raise ValueError(f"{feature!r} is no feature index; {self._range}") from None
        if found not in self._known:
            raise ValueError(f"there is no feature {found}; {self._range}")
        return found

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.nodes["feature_idx"].to_list())

    @property
    def _range(self) -> str:
        if not self._known:
            return "the graph has no features"
        low, high = min(self._known), max(self._known)
        if len(self._known) == high - low + 1:
            return f"features are {low}..{high}"
        return f"features are {len(self._known)} of {low}..{high}"

    @cached_property
    def _rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(d_sae + 1,) starts and (n_edges,) targets, best first within a source."""
        source = self.edges["source"].to_numpy()
        order = np.argsort(source, kind="stable")
        starts = np.searchsorted(source[order], np.arange(self.d_sae + 1))
        return starts, self.edges["target"].to_numpy()[order].astype(np.int64)

    def _distances_to(self, target: int, max_length: int) -> NDArray[np.int64]:
        """(d_sae,) edges to the target by the shortest way."""
        distance = np.full(self.d_sae, UNREACHED)
        distance[target] = 0
        starts, targets = self._rows
        sources = np.repeat(np.arange(self.d_sae), np.diff(starts))
        for step in range(1, max_length + 1):
            reached = sources[distance[targets] == step - 1]
            distance[reached] = np.minimum(distance[reached], step)
        return distance

    def _walk(
        self, path: tuple[int, ...], target: int, left: int, distance: NDArray[np.int64]
    ) -> Iterator[tuple[int, ...]]:
        starts, targets = self._rows
        for following in targets[starts[path[-1]] : starts[path[-1] + 1]].tolist():
            if left == 1:
                if following == target:
                    yield (*path, following)
            elif following not in path and following != target and distance[following] < left:
                yield from self._walk((*path, following), target, left - 1, distance)
