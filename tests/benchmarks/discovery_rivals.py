"""Known ways to find groups of nodes in a directed graph, on the table of significant edges.

All get the same table: P(j | i), the chance that j fires right after i, of every edge whose score is
at least a threshold. Each returns sets of features; a set of one is kept only where the feature
leads back to itself.

1. Strongly connected cores: every member can be reached from every other.
2. Almost-invariant sets, as in PCCA: the chain whose rows are P(j | i), each made to sum to 1, and
   itself backwards in time are averaged; its slow eigenvectors say which features stay together.
3. Communities: Louvain, Leiden, Infomap. The latter two are packages that nothing else here needs:
   `pip install leidenalg igraph infomap`.
4. Local growth: from each feature, the neighbour that lowers the conductance most, as long as one
   does.
5. Paths: from each feature to its likeliest follower, until there is none or one comes again.

Each has up to two numbers to choose: the least score of an edge, and one of its own. `tried` lists
their values; `chosen` are those with the best mark (`discovery_scores.mark`) on worlds with seeds
below 100: `python tests/benchmarks/planted_automata.py --choose` prints all.

Source: Tarjan 1972 (cores); Deuflhard and Weber 2005, Froyland 2005 (almost-invariant sets); Blondel
et al. 2008; Traag et al. 2019; Rosvall and Bergstrom 2008 (communities); Andersen et al. 2006
(conductance).
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import networkx as nx
import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

TELEPORT = 0.15  # chance to go on anywhere, so that every feature is visited; as in PageRank
MIN_MEMBERSHIP = 0.5  # a feature that belongs less to each set belongs to none
MIN_PATH = 4  # shorter paths are pairs and systems
SAME_SET = 0.8  # grown sets with this Jaccard similarity are one
MIN_SCORES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
RESOLUTIONS = (0.25, 0.5, 1.0, 2.0, 4.0)


class Links(NamedTuple):
    """A directed graph over the features that have an edge."""

    features: tuple[int, ...]
    """Feature of each row, ascending."""

    shares: NDArray[np.float64]
    """(n, n) P(j | i), row = source, column = target; 0 where there is no edge."""


class Setting(NamedTuple):
    """What a way can choose."""

    min_score: float
    """Least score of an edge, nats."""

    value: float
    """A number of its own; 0 where it has none."""


class Rival(NamedTuple):
    """A way to find sets of features."""

    name: str
    find: Callable[[Links, float], list[frozenset[int]]]
    tried: tuple[float, ...]
    """Values of its own number."""

    chosen: Setting
    package: str = ""
    """What has to be installed beside this project's own packages."""

    def settings(self) -> Iterator[Setting]:
        """Give all settings that were tried."""
        return (Setting(*pair) for pair in product(MIN_SCORES, self.tried))

    def sets(self, edges: pl.DataFrame, setting: Setting) -> list[frozenset[int]]:
        """Find sets of features.

        Args:
            edges: the graph's edge table.
            setting: one of those tried.
        """
        links = links_of(edges.filter(pl.col("score") >= setting.min_score))
        return self.find(links, setting.value) if links.features else []

    def is_installed(self) -> bool:
        """Say whether it can run."""
        return not self.package or find_spec(self.package) is not None


def links_of(edges: pl.DataFrame) -> Links:
    """Read source, target and p_target_given_source of an edge table."""
    source, target = (edges[name].to_numpy() for name in ("source", "target"))
    features = np.unique(np.concatenate([source, target]))
    shares = np.zeros((len(features), len(features)))
    at = np.searchsorted(features, source), np.searchsorted(features, target)
    shares[at] = edges["p_target_given_source"].to_numpy()
    return Links(tuple(features.tolist()), shares)


def cores(links: Links, _value: float) -> list[frozenset[int]]:
    """Give the strongly connected components."""
    return _kept(links, nx.strongly_connected_components(_digraph(links)))


def almost_invariant(links: Links, least: float) -> list[frozenset[int]]:
    """Give the sets that the averaged chain hardly leaves.

    Args:
        links: the graph.
        least: as many sets as there are eigenvalues of at least this much.
    """
    flow = _flow(links.shares)
    both = flow + flow.T
    root = np.sqrt(both.sum(axis=1))
    values, vectors = np.linalg.eigh(both / np.outer(root, root))
    slow = vectors[:, values >= least] / root[:, None]
    if not slow.shape[1]:
        return []
    memberships = slow @ np.linalg.inv(slow[_corners(slow)])
    owner = np.where(memberships.max(axis=1) >= MIN_MEMBERSHIP, memberships.argmax(axis=1), -1)
    return _kept(links, (np.flatnonzero(owner == k) for k in range(slow.shape[1])))


def louvain(links: Links, resolution: float) -> list[frozenset[int]]:
    """Give the communities of largest directed modularity."""
    graph = _digraph(links)
    return _kept(links, nx.community.louvain_communities(graph, resolution=resolution, seed=0))


def leiden(links: Links, resolution: float) -> list[frozenset[int]]:
    """Give the communities of largest directed modularity, each of them connected."""
    import igraph  # noqa: PLC0415 - not needed by the rest
    import leidenalg  # noqa: PLC0415

    rows, columns = np.nonzero(links.shares)
    graph = igraph.Graph(
        n=len(links.features), edges=list(zip(rows.tolist(), columns.tolist(), strict=True)),
        directed=True,
    )  # fmt: skip
    parts: Any = leidenalg.find_partition(
        graph,
        leidenalg.RBConfigurationVertexPartition,
        weights=links.shares[rows, columns].tolist(),
        resolution_parameter=resolution,
        n_iterations=-1,
        seed=1,
    )
    return _kept(links, parts)


def infomap(links: Links, markov_time: float) -> list[frozenset[int]]:
    """Give the modules by which a walk is described most briefly; a longer time gives larger ones."""
    from infomap import Infomap  # noqa: PLC0415 - not needed by the rest

    walk: Any = Infomap(
        silent=True, directed=True, two_level=True, seed=1, num_trials=5, markov_time=markov_time
    )
    for i, j in np.argwhere(links.shares).tolist():
        walk.add_link(i, j, float(links.shares[i, j]))
    modules: dict[int, list[int]] = {}
    for node, module in sorted(walk.run().modules().items()):
        modules.setdefault(module, []).append(node)
    return _kept(links, modules.values())


def grown(links: Links, limit: float) -> list[frozenset[int]]:
    """Grow a set from each feature, as long as its conductance falls.

    Args:
        links: the graph; both directions of a pair are added up.
        limit: sets with a larger conductance are left out.
    """
    both = links.shares + links.shares.T
    found: dict[frozenset[int], float] = {}
    for seed in range(len(both)):
        members, conductance = _grow(both, seed)
        if conductance <= limit:
            found.setdefault(frozenset(members), conductance)
    kept: list[frozenset[int]] = []
    for one in sorted(found, key=lambda one: (found[one], sorted(one))):
        if all(len(one & other) < SAME_SET * len(one | other) for other in kept):
            kept.append(one)
    return _kept(links, kept)


def paths(links: Links, least: float) -> list[frozenset[int]]:
    """Follow from each feature the likeliest next one; the longest paths are kept.

    Args:
        links: the graph.
        least: P(next | feature) of every step.
    """
    shares = links.shares.copy()
    np.fill_diagonal(shares, 0)
    following = np.where(shares.max(axis=1) >= least, shares.argmax(axis=1), -1)
    walks = []
    for start in range(len(following)):
        walk = [start]
        while (at := int(following[walk[-1]])) >= 0 and at not in walk:
            walk.append(at)
        walks.append(frozenset(walk))
    longest = [one for one in dict.fromkeys(walks) if not any(one < other for other in walks)]
    return _kept(links, [one for one in longest if len(one) >= MIN_PATH])


def _digraph(links: Links) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(links.features)))
    graph.add_weighted_edges_from(
        (i, j, float(links.shares[i, j])) for i, j in np.argwhere(links.shares).tolist()
    )
    return graph


def _kept(links: Links, groups: Iterable[Iterable[int]]) -> list[frozenset[int]]:
    """Turn groups of rows into sets of features; of the single ones, keep those with a loop."""
    members = (sorted(int(row) for row in group) for group in groups)
    sets = [
        frozenset(links.features[row] for row in rows)
        for rows in members
        if len(rows) > 1 or (rows and links.shares[rows[0], rows[0]] > 0)
    ]
    return sorted(sets, key=sorted)


def _flow(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, n) how often a walk takes each edge, when it goes on anywhere now and then."""
    n, sums = len(shares), shares.sum(axis=1, keepdims=True)
    chain = np.divide(shares, sums, out=np.zeros_like(shares), where=sums > 0)
    walk = np.where(sums > 0, (1 - TELEPORT) * chain + TELEPORT / n, 1 / n)
    system = np.vstack([walk.T - np.eye(n), np.ones(n)])
    visits = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)[0]
    return np.asarray(visits[:, None] * chain)


def _corners(points: NDArray[np.float64]) -> list[int]:
    """Give as many rows as there are columns: the corners of the simplex that holds all rows."""
    rest = points.copy()
    corners = [int(np.argmax((rest**2).sum(axis=1)))]
    rest -= rest[corners[0]]
    for _ in range(1, points.shape[1]):
        lengths = np.sqrt((rest**2).sum(axis=1))
        corners.append(int(np.argmax(lengths)))
        direction = rest[corners[-1]] / max(float(lengths.max()), np.finfo(float).tiny)
        rest -= np.outer(rest @ direction, direction)
    return corners


def _grow(both: NDArray[np.float64], seed: int) -> tuple[list[int], float]:
    """Give the members and their conductance: the share of their ties that leave."""
    volume, own = both.sum(axis=1), both.diagonal()
    members, inside, held = [seed], both[seed].copy(), float(volume[seed])
    cut = held - float(own[seed])
    best = _conductance(np.array(cut), np.array(held), volume.sum())
    while True:
        cuts, volumes = cut + volume - own - 2 * inside, held + volume
        after = _conductance(cuts, volumes, volume.sum())
        after[members] = np.inf
        after[inside <= 0] = np.inf
        at = int(np.argmin(after))
        if not after[at] < best:
            return members, float(best)
        members.append(at)
        best, cut, held = after[at], float(cuts[at]), float(volumes[at])
        inside += both[at]


def _conductance(
    cut: NDArray[np.float64], volume: NDArray[np.float64], total: float
) -> NDArray[np.float64]:
    """Give the ties that leave over the smaller side's ties; 1 where one side has none."""
    smaller = np.minimum(volume, total - volume)
    return np.divide(cut, smaller, out=np.ones_like(cut), where=smaller > 1e-12)


RIVALS = (
    Rival("strongly connected cores", cores, (0.0,), Setting(0.1, 0.0)),
    Rival(
        "almost-invariant sets",
        almost_invariant,
        (0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
        Setting(0.1, 0.9),
    ),
    Rival("Louvain", louvain, RESOLUTIONS, Setting(0.1, 0.5)),
    Rival("Leiden", leiden, RESOLUTIONS, Setting(0.1, 0.5), "leidenalg"),
    Rival("Infomap", infomap, (0.5, 1.0, 2.0, 3.0, 5.0, 8.0), Setting(0.1, 5.0), "infomap"),
    Rival("local growth", grown, (0.05, 0.1, 0.2, 0.3, 0.5, 0.7), Setting(0.1, 0.1)),
    Rival("paths", paths, (0.1, 0.2, 0.3, 0.5, 0.7), Setting(0.3, 0.2)),
)
