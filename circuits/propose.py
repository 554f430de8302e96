"""Candidate automata: sets of features between which promoted tokens flow, found at several scales.

1. Flow: of the pairs i -> j whose token i promoted, those beyond what i and j share by topic alone (their rate
   5 to 20 tokens apart). Features that stay on through a whole text carry no flow.
2. Loops are features that lead back to themselves; pairs lead to each other and back.
3. Systems are communities of the flow, at several resolutions.
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

RESOLUTIONS = (0.5, 1.0, 2.0, 4.0, 8.0)  # from half the graph to systems of three or four features
LOOP_SHARE = 0.4  # of a loop's promoted tokens, this share must fire it again
PAIR_SHARE = 0.25  # of each one's flow, this share must go to the other
CHAIN_SHARE = (
    0.5  # of each one's flow, this share must go to the next, and come from the one before
)
MIN_CHAIN = 4  # features; shorter chains are pairs and systems
MAX_FEATURES = 80  # a set with more is a topic, not an automaton
MIN_INSIDE = 0.3  # of a member's flow, this share must stay in the set


class Proposal(NamedTuple):
    """A set of features that may be an automaton."""

    features: tuple[int, ...]
    """Feature ids, ascending (a chain: in its order)."""

    kind: str
    """How it was found: loop, pair, chain or system."""


def propose(edges: pl.DataFrame, d_sae: int) -> list[Proposal]:
    """Find sets of features that may be automata.

    Args:
        edges: the graph's edge table.
        d_sae: number of features.

    Returns:
        Candidates of all kinds, each set of a kind once, in a fixed order.
    """
    flow = flow_matrix(edges, d_sae)
    found = [*_loops(edges), *_pairs(flow), *_chains(flow), *_systems(flow)]
    return list(dict.fromkeys(found))


def flow_matrix(edges: pl.DataFrame, d_sae: int) -> NDArray[np.float64]:
    """Give the promoted pairs beyond what the topic explains.

    Args:
        edges: the graph's edge table.
        d_sae: number of features.

    Returns:
        (d_sae, d_sae) pairs, >= 0; row = source, column = target; the diagonal is 0.
    """
    by_topic = pl.col("p_target_given_source") / pl.col("burst_ratio")
    beyond = (1 - by_topic / pl.col("p_target_given_promoted")).clip(0, 1)
    rows = edges.filter(
        (pl.col("source") != pl.col("target"))
        & (pl.col("n_promoted") > 0)
        & (pl.col("burst_ratio") > 0)
        & (pl.col("p_target_given_promoted") > 0)
    ).select("source", "target", (pl.col("n_promoted") * beyond).alias("flow"))
    flow = np.zeros((d_sae, d_sae))
    flow[rows["source"].to_numpy(), rows["target"].to_numpy()] = rows["flow"].to_numpy()
    return flow


def _loops(edges: pl.DataFrame) -> Iterable[Proposal]:
    loops = edges.filter(
        (pl.col("source") == pl.col("target")) & (pl.col("p_target_given_promoted") >= LOOP_SHARE)
    )
    for feature in loops["source"].sort().to_list():
        yield Proposal((feature,), "loop")


def _shares(flow: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    out, into = flow.sum(axis=1, keepdims=True), flow.sum(axis=0, keepdims=True)
    forward = np.divide(flow, out, out=np.zeros_like(flow), where=out > 0)
    backward = np.divide(flow, into, out=np.zeros_like(flow), where=into > 0)
    return forward, backward


def _pairs(flow: NDArray[np.float64]) -> Iterable[Proposal]:
    forward, _ = _shares(flow)
    mutual = np.triu(np.minimum(forward, forward.T) >= PAIR_SHARE, k=1)
    for a, b in np.argwhere(mutual).tolist():
        yield Proposal((a, b), "pair")


def _chains(flow: NDArray[np.float64]) -> Iterable[Proposal]:
    forward, backward = _shares(flow)
    links = np.argwhere(np.minimum(forward, backward) >= CHAIN_SHARE).tolist()
    follows = {a: b for a, b in links if a != b}
    starts = sorted(set(follows) - set(follows.values()))
    for start in starts:
        chain = [start]
        while chain[-1] in follows and follows[chain[-1]] not in chain:
            chain.append(follows[chain[-1]])
        if len(chain) >= MIN_CHAIN:
            yield Proposal(tuple(chain), "chain")


def _systems(flow: NDArray[np.float64]) -> Iterable[Proposal]:
    both = flow + flow.T
    sources, targets = np.nonzero(np.triu(both, k=1))
    graph = nx.Graph()
    graph.add_weighted_edges_from(
        zip(sources.tolist(), targets.tolist(), both[sources, targets].tolist(), strict=True)
    )
    for resolution in RESOLUTIONS:
        for group in nx.community.louvain_communities(graph, resolution=resolution, seed=0):
            features = _core(flow, sorted(group))
            if 3 <= len(features) <= MAX_FEATURES:
                yield Proposal(features, "system")


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
