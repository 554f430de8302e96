"""Candidate automata: sets of features between which promoted tokens flow, found at several scales.

1. Flow runs along strong edges only: promoted, and far beyond what source and target share by topic (their rate
   5 to 20 tokens apart). Features that stay on through a whole text carry none.
2. Loops are features that lead back to themselves; pairs lead to each other and back.
3. Features that get flow from the same ones and lead to the same ones play one role: in pairs and chains
   they count as one.
4. Systems are communities of the flow, at several resolutions, and unions of the two most tied.
5. Chains are runs of roles each of which leads almost only to the next.

Flow is held in compressed rows: what counts is the number of strong edges, not that of features.

Source: Bricken et al. 2023, section "Finite State Automata" (what to look for); Blondel et al. 2008 (communities).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import networkx as nx
import numpy as np
import polars as pl
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csgraph

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
MIN_ALIKE = 0.8  # cosine of what two features get, and of what they give, on average, for one role
MIN_CHAIN = 4  # places; shorter chains are pairs and systems
MAX_FEATURES = 400  # a set with more is a topic, not an automaton
MAX_SHARE = 6  # likewise one with more than a sixth of a dictionary that has over FEW_FEATURES * 6
FEW_FEATURES = 80
MIN_INSIDE = 0.5  # of a member's flow, this share must stay in the set
MIN_GIVEN = 0.3  # of the nats that members usually give to what follows; less is an onlooker's
MIN_CLOSED = 0.9  # of a closed set's flow, fine threads included, this share stays inside


_TIE = (pl.col("score") * pl.col("n_promoted").clip(lower_bound=1)).sqrt()  # strength and use alike


Roles: TypeAlias = list[tuple[int, ...]]
"""Features of each role; no feature has two."""


class Proposal(NamedTuple):
    """A set of features that may be an automaton."""

    groups: tuple[tuple[int, ...], ...]
    """Features that are known to play one role together; in a system, each by itself."""

    kind: str
    """How it was found: loop, pair, chain or system."""

    closed: bool = False
    """Hardly any flow leaves it: where its states lead to none of it, a feature missed a token."""

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
        strong = strong_edges(edges, min_score)
        flow = flow_matrix(strong, d_sae, weight=pl.col("n_promoted").clip(lower_bound=1))
        ties = flow_matrix(strong, d_sae, weight=_TIE)
        roles = _roles(flow)
        found += [*_pairs(flow, roles), *_chains(flow, roles), *_systems(ties)]
    return list(dict.fromkeys(_settled(found, edges, d_sae)))


def _settled(found: Iterable[Proposal], edges: pl.DataFrame, d_sae: int) -> Iterable[Proposal]:
    """Leave onlookers out of each set, and say which sets are closed."""
    nats = pl.col("n_promoted") * pl.col("promoted_nats").fill_null(0.0)
    given = flow_matrix(edges, d_sae, weight=nats)
    pairs = flow_matrix(edges, d_sae, weight=pl.col("n_pairs"))
    finest = strong_edges(edges, min(MIN_SCORES))
    flow = flow_matrix(finest, d_sae, weight=pl.col("n_promoted").clip(lower_bound=1))
    flow = (flow + flow.T).tocsr()
    total = flow.sum(axis=1)
    for one in found:
        features = np.array(one.features)
        onlookers = _onlookers(features, given, pairs)
        groups = (tuple(i for i in group if i not in onlookers) for group in one.groups)
        inside = flow[features][:, features].sum()
        closed = inside >= MIN_CLOSED * total[features].sum()
        yield Proposal(tuple(group for group in groups if group), one.kind, bool(closed))


def _onlookers(
    features: NDArray[np.int64], given: sparse.csr_array, pairs: sparse.csr_array
) -> set[int]:
    """Give the members that fire where others do, but hardly make likelier what then follows."""
    n_pairs = pairs[features][:, features].sum(axis=1)
    leads = n_pairs > 0
    nats = given[features][:, features].sum(axis=1)[leads] / n_pairs[leads]
    few = nats < MIN_GIVEN * np.median(nats) if len(nats) > 1 else []
    return set(features[leads][few].tolist())


def most_features(d_sae: int) -> int:
    """Give how many features a system has at most: of a small dictionary, most are of several."""
    return min(MAX_FEATURES, max(FEW_FEATURES, d_sae // MAX_SHARE))


def flow_matrix(edges: pl.DataFrame, d_sae: int, *, weight: pl.Expr) -> sparse.csr_array:
    """Give the flow along edges.

    Args:
        edges: rows of the graph's edge table.
        d_sae: number of features.
        weight: what each edge carries, > 0.

    Returns:
        (d_sae, d_sae) row = source, column = target, sorted; the diagonal is empty.
    """
    rows = edges.filter(pl.col("source") != pl.col("target")).sort("source", "target")
    carried = rows.select(weight.alias("flow"))["flow"].cast(pl.Float64).to_numpy()
    at = rows["source"].to_numpy(), rows["target"].to_numpy()
    return sparse.csr_array((carried, at), shape=(d_sae, d_sae))


def strong_edges(edges: pl.DataFrame, min_score: float) -> pl.DataFrame:
    """Give the edges along which flow runs.

    Args:
        edges: the graph's edge table.
        min_score: least score.
    """
    return edges.filter(
        (pl.col("score") >= min_score)
        & (pl.col("lift") >= MIN_LIFT)
        & (pl.col("burst_ratio") >= MIN_BURST)
    )


def leads_to_itself() -> pl.Expr:
    """Say which rows of an edge table make a loop of their source."""
    return (pl.col("source") == pl.col("target")) & (
        pl.col("p_target_given_promoted") >= LOOP_SHARE
    )


def _loops(edges: pl.DataFrame) -> Iterable[Proposal]:
    """Give the features that lead back to themselves, and sets of them that lead to each other."""
    loops = set(edges.filter(leads_to_itself())["source"].to_list())
    for feature in sorted(loops):
        yield Proposal(((feature,),), "loop")
    sure = pl.col("p_target_given_promoted") >= LOOP_SHARE
    tied = edges.filter(sure, pl.col("lift") >= MIN_LIFT).select("source", "target").rows()
    both_ways = {(a, b) for a, b in tied if a in loops and b in loops} & {(b, a) for a, b in tied}
    twins = nx.Graph((a, b) for a, b in sorted(both_ways) if a < b)
    for group in sorted(sorted(part) for part in nx.connected_components(twins)):
        yield Proposal((tuple(group),), "loop")


def _shares(flow: sparse.csr_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(nnz,) each edge's share of what leaves its source, and of what enters its target."""
    out, into = flow.sum(axis=1), flow.sum(axis=0)
    return flow.data / np.repeat(out, np.diff(flow.indptr)), flow.data / into[flow.indices]


def _roles(flow: sparse.csr_array) -> Roles:
    """Group the features that get flow from the same ones and lead to the same ones, every two alike."""
    ties = sum(_cosines(side) for side in (flow, flow.T.tocsr()))
    has = [(side.sum(axis=1) > 0).astype(np.float64) for side in (flow, flow.T)]
    alike = ties.tocoo()
    a, b = alike.coords
    sides = sum(np.maximum(has_any[a], has_any[b]) for has_any in has)
    alike.data /= sides
    likeness, same = alike.tocsr(), alike.data >= MIN_ALIKE
    graph = sparse.coo_array((alike.data[same], (a[same], b[same])), shape=flow.shape)
    _, part_of = csgraph.connected_components(graph, directed=False)
    members = np.flatnonzero(has[0] + has[1])
    members = members[np.argsort(part_of[members], kind="stable")]
    starts = np.flatnonzero(np.diff(part_of[members], prepend=-1))
    parts = np.split(members, starts[1:])
    return sorted(role for part in parts for role in _all_alike(part, likeness))


def _all_alike(part: NDArray[np.int64], likeness: sparse.csr_array) -> Roles:
    """Part features into groups of which every two are alike (complete linkage)."""
    if len(part) < 3:
        return [tuple(part.tolist())]
    apart = np.maximum(0.0, 1 - likeness[part][:, part].toarray())
    tree = linkage(apart[np.triu_indices(len(part), 1)], "average")
    group = fcluster(tree, 1 - MIN_ALIKE, "distance")
    return [tuple(part[group == at].tolist()) for at in np.unique(group)]


def _cosines(rows: sparse.csr_array) -> sparse.csr_array:
    length = np.sqrt(rows.multiply(rows).sum(axis=1))
    scale = sparse.diags_array(np.divide(1.0, length, out=np.zeros_like(length), where=length > 0))
    unit = scale @ rows
    return (unit @ unit.T).tocsr()


def _between(flow: sparse.csr_array, roles: Roles) -> sparse.csr_array:
    """(n_roles, n_roles) flow from role to role; what stays in a role is left out."""
    rows = np.repeat(np.arange(len(roles)), [len(role) for role in roles])
    columns = np.array([feature for role in roles for feature in role], np.int64)
    joins = sparse.csr_array((np.ones(len(rows)), (rows, columns)), (len(roles), flow.shape[0]))
    total = (joins @ flow @ joins.T).tocoo()
    a, b = total.coords
    return sparse.csr_array((total.data[a != b], (a[a != b], b[a != b])), shape=total.shape)


def _pairs(flow: sparse.csr_array, roles: Roles) -> Iterable[Proposal]:
    between = _between(flow, roles)
    forward, _ = _shares(between)
    leads = sparse.csr_array((forward, between.indices, between.indptr), shape=between.shape)
    for a, b in _entries(leads.minimum(leads.T), PAIR_SHARE):
        if a < b:
            yield Proposal((roles[a], roles[b]), "pair")


def _chains(flow: sparse.csr_array, roles: Roles) -> Iterable[Proposal]:
    between = _between(flow, roles)
    least = np.minimum(*_shares(between))
    both_ways = sparse.csr_array((least, between.indices, between.indptr), shape=between.shape)
    links = nx.DiGraph(_entries(both_ways, CHAIN_SHARE))
    for part in sorted(sorted(part) for part in nx.weakly_connected_components(links)):
        line = links.subgraph(part)
        if not nx.is_directed_acyclic_graph(line):
            continue
        generations = [sorted(at) for at in nx.topological_generations(line)]
        places = [tuple(sorted(i for role in at for i in roles[role])) for at in generations]
        if len(places) >= MIN_CHAIN:
            yield Proposal(tuple(places), "chain")


def _entries(matrix: sparse.csr_array, least: float) -> list[tuple[int, int]]:
    """List the entries of at least `least`, by row, then column."""
    found = matrix.tocoo()
    rows, columns = (places[found.data >= least].tolist() for places in found.coords)
    return sorted(zip(rows, columns, strict=True))


def _systems(flow: sparse.csr_array) -> Iterable[Proposal]:
    both = (flow + flow.T).tocsr()
    both.sort_indices()
    ties = sparse.triu(both, k=1).tocsr().tocoo()
    graph = nx.Graph()
    edges = (*(places.tolist() for places in ties.coords), ties.data.tolist())
    graph.add_weighted_edges_from(zip(*edges, strict=True))
    total = both.sum(axis=1)
    for resolution in RESOLUTIONS:
        groups = nx.community.louvain_communities(graph, resolution=resolution, seed=0)
        parts = sorted(sorted(group) for group in groups)
        for group in [*parts, *_unions(both, parts)]:
            features = _core(both, total, group)
            if 3 <= len(features) <= most_features(both.shape[0]):
                yield Proposal(tuple((feature,) for feature in features), "system")


def _unions(both: sparse.csr_array, parts: list[list[int]]) -> Iterable[list[int]]:
    """Join each community with the one to which it is tied most: two halves of one language."""
    sizes = [len(part) for part in parts]
    members = [feature for part in parts for feature in part]
    part_of = np.zeros(both.shape[0], np.int64)
    part_of[members] = np.repeat(np.arange(len(parts)), sizes)
    for at, part in enumerate(parts):
        rows = both[part]
        ties = np.bincount(part_of[rows.indices], weights=rows.data, minlength=len(parts))
        ties[at] = 0.0
        if ties.max() > 0:
            yield sorted(part + parts[int(np.argmax(ties))])


def _core(both: sparse.csr_array, total: NDArray[np.float64], group: list[int]) -> tuple[int, ...]:
    """Drop members, one at a time, most of whose flow leaves the group."""
    among = both[group][:, group]
    is_left = np.ones(len(group), dtype=bool)
    while is_left.sum() > 2:
        inside = np.where(is_left, among @ is_left.astype(np.float64) / total[group], np.inf)
        weakest = int(np.argmin(inside))
        if inside[weakest] >= MIN_INSIDE:
            break
        is_left[weakest] = False
    return tuple(feature for feature, stays in zip(group, is_left, strict=True) if stays)
