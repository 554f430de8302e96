"""Candidate automata: sets of features between which promoted tokens flow, found at several scales.

1. Flow runs along strong edges only: promoted, and far beyond what source and target share by topic (their rate
   5 to 20 tokens apart). Features that stay on through a whole text carry none.
2. Loops are features that lead back to themselves; pairs lead to each other and back.
3. Systems are communities of the flow, at several resolutions, and unions of the two most tied.
4. Chains are runs of features each of which leads almost only to the next.

Source: Bricken et al. 2023, section "Finite State Automata" (what to look for); Blondel et al. 2008 (communities).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import networkx as nx
import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

MIN_SCORES = (1.0, 0.3)  # edges of at least this score carry flow: the backbone, then finer threads
MIN_LIFT = 3.0  # a target less tied to its source fires everywhere
MIN_BURST = 2.0  # of what follows at once, at least half must be more than the shared topic
RESOLUTIONS = (0.3, 0.5, 1.0, 2.0)  # from whole languages to systems of three or four features
LOOP_SHARE = 0.4  # of a loop's promoted tokens, this share must fire it again
PAIR_SHARE = 0.25  # of each one's flow, this share must go to the other
CHAIN_SHARE = 0.3  # of each one's flow, this share must go to the next, which two may share
MIN_CHAIN = 4  # places; shorter chains are pairs and systems
MAX_FEATURES = 80  # a set with more is a topic, not an automaton
MIN_INSIDE = 0.5  # of a member's flow, this share must stay in the set


_TIE = (pl.col("score") * pl.col("n_promoted").clip(lower_bound=1)).sqrt()  # strength and use alike


class Proposal(NamedTuple):
    """A set of features that may be an automaton."""

    groups: tuple[tuple[int, ...], ...]
    """Features that are known to play one role together; in a system, each by itself."""

    kind: str
    """How it was found: loop, pair, chain or system."""

    @property
    def features(self) -> tuple[int, ...]:
        """All features, in the order of the groups."""
        return tuple(feature for group in self.groups for feature in group)


def propose(edges: pl.DataFrame, d_sae: int) -> list[Proposal]:
    """Find sets of features that may be automata.

    Args:
        edges: the graph's edge table.
        d_sae: number of features.

    Returns:
        Candidates of all kinds, each set of a kind once, in a fixed order.
    """
    found = list(_loops(edges))
    for min_score in MIN_SCORES:
        strong = _strong(edges, min_score)
        flow = flow_matrix(strong, d_sae, weight=pl.col("n_promoted").clip(lower_bound=1))
        ties = flow_matrix(strong, d_sae, weight=_TIE)
        found += [*_pairs(flow), *_chains(flow), *_systems(ties)]
    return list(dict.fromkeys(found))


def flow_matrix(edges: pl.DataFrame, d_sae: int, *, weight: pl.Expr) -> NDArray[np.float64]:
    """Give the flow along edges.

    Args:
        edges: rows of the graph's edge table.
        d_sae: number of features.
        weight: what each edge carries, >= 0.

    Returns:
        (d_sae, d_sae) row = source, column = target; the diagonal is 0.
    """
    rows = edges.filter(pl.col("source") != pl.col("target"))
    flow = np.zeros((d_sae, d_sae))
    carried = rows.select(weight.alias("flow"))["flow"].to_numpy()
    flow[rows["source"].to_numpy(), rows["target"].to_numpy()] = carried
    return flow


def _strong(edges: pl.DataFrame, min_score: float) -> pl.DataFrame:
    return edges.filter(
        (pl.col("score") >= min_score)
        & (pl.col("lift") >= MIN_LIFT)
        & (pl.col("burst_ratio") >= MIN_BURST)
    )


def _loops(edges: pl.DataFrame) -> Iterable[Proposal]:
    """Give the features that lead back to themselves, and sets of them that lead to each other."""
    sure = edges.filter(pl.col("p_target_given_promoted") >= LOOP_SHARE)
    loops = set(sure.filter(pl.col("source") == pl.col("target"))["source"].to_list())
    for feature in sorted(loops):
        yield Proposal(((feature,),), "loop")
    tied = sure.filter(pl.col("lift") >= MIN_LIFT).select("source", "target").rows()
    both_ways = {(a, b) for a, b in tied if a in loops and b in loops} & {(b, a) for a, b in tied}
    twins = nx.Graph((a, b) for a, b in sorted(both_ways) if a < b)
    for group in sorted(sorted(part) for part in nx.connected_components(twins)):
        yield Proposal((tuple(group),), "loop")


def _shares(flow: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    out, into = flow.sum(axis=1, keepdims=True), flow.sum(axis=0, keepdims=True)
    forward = np.divide(flow, out, out=np.zeros_like(flow), where=out > 0)
    backward = np.divide(flow, into, out=np.zeros_like(flow), where=into > 0)
    return forward, backward


def _pairs(flow: NDArray[np.float64]) -> Iterable[Proposal]:
    forward, _ = _shares(flow)
    mutual = np.triu(np.minimum(forward, forward.T) >= PAIR_SHARE, k=1)
    for a, b in np.argwhere(mutual).tolist():
        yield Proposal(((a,), (b,)), "pair")


def _chains(flow: NDArray[np.float64]) -> Iterable[Proposal]:
    forward, backward = _shares(flow)
    links = nx.DiGraph(np.argwhere(np.minimum(forward, backward) >= CHAIN_SHARE).tolist())
    for part in sorted(sorted(part) for part in nx.weakly_connected_components(links)):
        line = links.subgraph(part)
        if not nx.is_directed_acyclic_graph(line):
            continue
        places = [tuple(sorted(place)) for place in nx.topological_generations(line)]
        if len(places) >= MIN_CHAIN:
            yield Proposal(tuple(places), "chain")


def _systems(flow: NDArray[np.float64]) -> Iterable[Proposal]:
    both = flow + flow.T
    sources, targets = np.nonzero(np.triu(both, k=1))
    graph = nx.Graph()
    graph.add_weighted_edges_from(
        zip(sources.tolist(), targets.tolist(), both[sources, targets].tolist(), strict=True)
    )
    for resolution in RESOLUTIONS:
        groups = nx.community.louvain_communities(graph, resolution=resolution, seed=0)
        parts = sorted(sorted(group) for group in groups)
        for group in [*parts, *_unions(both, parts)]:
            features = _core(flow, group)
            if 3 <= len(features) <= MAX_FEATURES:
                yield Proposal(tuple((feature,) for feature in features), "system")


def _unions(both: NDArray[np.float64], parts: list[list[int]]) -> Iterable[list[int]]:
    """Join each community with the one to which it is tied most: two halves of one language."""
    if len(parts) < 2:
        return
    ties = np.array([[both[np.ix_(a, b)].sum() for b in parts] for a in parts])
    np.fill_diagonal(ties, 0.0)
    for at, part in enumerate(parts):
        if ties[at].max() > 0:
            yield sorted(part + parts[int(np.argmax(ties[at]))])


def _core(flow: NDArray[np.float64], group: list[int]) -> tuple[int, ...]:
    """Drop members, one at a time, most of whose flow leaves the group."""
    both = flow + flow.T
    total = both.sum(axis=1)
    while len(group) > 2:
        inside = both[np.ix_(group, group)].sum(axis=1) / total[group]
        weakest = int(np.argmin(inside))
        if inside[weakest] >= MIN_INSIDE:
            break
        group = [feature for feature in group if feature != group[weakest]]
    return tuple(group)
