"""How well one unit of a dictionary tells the tokens of each family: F1 at its best threshold, and AUC.

1. A unit (a feature or a neuron) says yes where its activation is above a threshold. Its tokens are sorted by
   activation; cuts are made between different values only, and each is tried.
2. Best F1 is found at a cut right after a positive token, so that only the positives are walked over.
3. AUC is the chance that a positive token has a larger activation than another one, ties counting half. All tokens on
   which the unit is silent are tied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Firings(NamedTuple):
    """Where one unit is above 0."""

    rows: NDArray[np.integer]
    """(n,) tokens, each once."""

    acts: NDArray[np.floating]
    """(n,) activation, > 0."""


class Memberships(NamedTuple):
    """Which of the families each token belongs to; few sets of families occur, so that they are numbered."""

    codes: NDArray[np.int64]
    """(n_tokens,) number of the set of the token's families."""

    table: NDArray[np.bool_]
    """(n_sets, n_families) whether the family is in the set."""

    starts: NDArray[np.int64]
    """(n_sets + 1,) start of each set in `families`."""

    families: NDArray[np.uint8]
    """The families of the sets, one set after the other."""

    n_positive: NDArray[np.int64]
    """(n_families,) tokens that belong."""

    def row(self, family: int) -> NDArray[np.bool_]:
        """Give (n_tokens,) whether a token belongs to a family."""
        found: NDArray[np.bool_] = self.table[self.codes, family]
        return found


class Curves(NamedTuple):
    """What one unit can do for each family, on some tokens."""

    f1: NDArray[np.float64]
    """(n_families,) best F1 over all thresholds >= 0; 0 where it never hits."""

    threshold: NDArray[np.float64]
    """(n_families,) the highest threshold that reaches it, 0 or one of the activations."""

    auc: NDArray[np.float64]
    """(n_families,) in [0, 1]; nan where all tokens belong to the family, or none."""


class Told(NamedTuple):
    """What one threshold of one unit is worth for one family."""

    f1: float
    precision: float
    recall: float


def memberships(truth: NDArray[np.bool_]) -> Memberships:
    """Number the sets of families that tokens belong to.

    Args:
        truth: (n_families, n_tokens) whether a token belongs; at most 256 families.

    Example:
        >>> found = memberships(np.array([[1, 1, 0, 1], [0, 1, 0, 0]]) > 0)
        >>> found.codes.tolist(), found.row(1).tolist()
        ([1, 2, 0, 1], [False, True, False, False])
    """
    n_tokens = truth.shape[1]
    packed = np.packbits(truth, axis=0)
    codes = np.zeros(n_tokens, np.int64)
    for byte in packed:  # a set is numbered by its first families, then by those and the next eight
        codes = np.unique(codes << 8 | byte, return_inverse=True)[1]
    first = np.zeros(int(codes.max(initial=-1)) + 1, np.int64)
    first[codes] = np.arange(n_tokens)
    table = truth[:, first].T  # (n_sets, n_families)
    families = np.nonzero(table)[1].astype(np.uint8)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(table.sum(axis=1))])
    return Memberships(codes, table, starts, families, truth.sum(axis=1))


def curves(firings: Firings, members: Memberships) -> Curves:
    """Find the best threshold of a unit for each family, and its AUC.

    Args:
        firings: where the unit fires.
        members: the tokens' families.

    Example:
        >>> members = memberships(np.eye(4)[:3] > 0)
        >>> found = curves(Firings(np.array([0, 2]), np.array([0.5, 2.0])), members)
        >>> found.f1.round(2).tolist(), found.threshold.tolist(), found.auc.round(2).tolist()
        ([0.67, 0.0, 1.0], [0.0, 0.0, 0.5], [0.67, 0.17, 1.0])
    """
    n_positive, n_families = members.n_positive, len(members.n_positive)
    order = np.argsort(-firings.acts, kind="stable")
    acts, n_fires = firings.acts[order], len(order)
    family, rank = _hits(firings.rows[order], members)
    n_hits = np.bincount(family, minlength=n_families)
    begins = np.cumsum(n_hits) - n_hits
    first, end = _ties(acts)
    n_true = np.arange(1, len(rank) + 1) - begins[family]
    f1s = 2 * n_true / (end[rank] + n_positive[family])
    f1, threshold = np.zeros(n_families), np.zeros(n_families)
    hit = np.flatnonzero(n_hits)
    if len(hit):
        f1[hit] = np.maximum.reduceat(f1s, begins[hit])
        best = np.flatnonzero(f1s == f1[family])
        chosen, at = np.unique(family[best], return_index=True)
        threshold[chosen] = np.append(acts, 0)[end[rank[best[at]]]]
    n_tokens = len(members.codes)
    above = np.bincount(family, (first + end)[rank], minlength=n_families) / 2
    above += (n_positive - n_hits) * (n_fires + n_tokens) / 2
    return Curves(f1, threshold, _auc(above, n_positive, n_tokens))


def told(firings: Firings, threshold: float, truth: NDArray[np.bool_]) -> Told:
    """Score one threshold of a unit for one family.

    Args:
        firings: where the unit fires.
        threshold: yes is said where the activation is above it; >= 0.
        truth: (n_tokens,) whether a token belongs.
    """
    yes = firings.rows[firings.acts > threshold]
    n_right, n_positive = int(truth[yes].sum()), int(truth.sum())
    return Told(
        2 * n_right / max(1, len(yes) + n_positive),
        n_right / max(1, len(yes)),
        n_right / max(1, n_positive),
    )


def _hits(
    rows: NDArray[np.integer], members: Memberships
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Give (family, place in `rows`) of each membership of the tokens, by family, then by place."""
    codes = members.codes[rows]
    n_each = np.diff(members.starts)[codes]
    rank = np.repeat(np.arange(len(rows)), n_each)
    skipped = np.repeat(members.starts[codes] - np.cumsum(n_each) + n_each, n_each)
    family = members.families[skipped + np.arange(len(rank))]
    order = np.argsort(family, kind="stable")
    return family[order], rank[order]


def _ties(acts: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the first place of each one's group of equal values, and one past its last; acts sorted."""
    cuts = np.flatnonzero(acts[1:] != acts[:-1]) + 1
    bounds = np.concatenate([[0], cuts, [len(acts)]])
    sizes = np.diff(bounds)
    return np.repeat(bounds[:-1], sizes), np.repeat(bounds[1:], sizes)


def _auc(
    above: NDArray[np.float64], n_positive: NDArray[np.int64], n_tokens: int
) -> NDArray[np.float64]:
    """Give the AUC from the sum, over the positives, of the tokens above each, ties and itself at half.

    A positive has n_tokens - above tokens below it; among those n_positive / 2 are positives, in the mean.
    """
    pairs = n_positive * (n_tokens - n_positive)
    won = n_positive * n_tokens - above - n_positive**2 / 2
    auc: NDArray[np.float64] = np.divide(
        won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0
    )
    return auc
