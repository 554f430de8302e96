"""Parts of a memorised phrase that are too rare to have edges of their own.

The place of a phrase may be split over several features, by text or by token. A part that fires a few
dozen times comes before each part of the next place a few times only, too few for an edge; it comes
before the whole place often. So each chain is asked again, place by place: a feature joins a place where

1. it comes after the place before, and before the place after, far more often than chance,
2. it does so for a fair share of the tokens it fires on,
3. it makes likelier what follows, as the others of its place do, and
4. it hardly ever fires with them: then it would be a twin, or only look on.

Source: Bricken et al. 2023, "Feature Splitting"; Bonferroni 1936 (tests of all features and places).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse
from scipy.stats import poisson

from circuits.propose import MIN_GIVEN, MIN_SCORES, Proposal, strong_edges
from circuits.states import has_next

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from numpy.typing import NDArray

    from sae_core.schema import TokenTable

MAX_P = 0.05  # that any feature joins any place of a chain by chance
MIN_SHARE = 0.1  # of its tokens, so many come after the place before, and so many before the next
MIN_END_SHARE = 0.3  # of the first and the last place's, which have but one neighbour
MAX_ROUNDS = 3  # a place that grew tells of more features before and after it
MAX_TOGETHER = 0.1  # of its tokens, fewer are tokens of the place's other features


class _Text(NamedTuple):
    """The text, by token and feature."""

    fires: sparse.csr_array
    """(n_tokens, d_sae) 1 where a feature fires."""

    gives: sparse.csr_array
    """(n_tokens, d_sae) nats it gave to the token that came next."""

    follows: NDArray[np.bool_]
    """(n_tokens,) whether the next row is the next token."""

    n_fires: NDArray[np.float64]
    """(d_sae,)."""

    is_free: NDArray[np.bool_]
    """(d_sae,) features without a strong edge."""


class _Seen(NamedTuple):
    """How often each feature is near each place of a chain; all are (n_places, d_sae)."""

    comes: NDArray[np.float64]
    """Right after the place."""

    leads: NDArray[np.float64]
    """Right before the place."""

    given: NDArray[np.float64]
    """Nats that it then gave to the place's token."""

    together: NDArray[np.float64]
    """On the same token."""


def with_rare_parts(
    proposals: Sequence[Proposal], edges: pl.DataFrame, tokens: TokenTable, d_sae: int
) -> list[Proposal]:
    """Add to each chain the features that play a part in one of its places.

    Args:
        proposals: sets of features; those that are no chains stay as they are.
        edges: the graph's edge table; a feature that has a strong one stays where it is.
        tokens: training text.
        d_sae: number of features.

    Returns:
        As many, in the same order.
    """
    if all(one.kind != "chain" for one in proposals):
        return list(proposals)
    shape = (len(tokens.token_ids), d_sae)
    rows = tokens.features.astype(np.int32), tokens.indptr
    fires = sparse.csr_array((np.ones(len(rows[0]), np.float32), *rows), shape)
    gives = sparse.csr_array((tokens.promotions, *rows), shape)
    strong = strong_edges(edges, min(MIN_SCORES)).select("source", "target").to_numpy()
    is_free = ~np.isin(np.arange(d_sae), strong)
    text = _Text(fires, gives, has_next(tokens), np.asarray(fires.sum(axis=0)), is_free)
    return [_grown(one, text) if one.kind == "chain" else one for one in proposals]


def _grown(chain: Proposal, text: _Text) -> Proposal:
    for _ in range(MAX_ROUNDS):
        grown = _grown_once(chain, text)
        if grown == chain:
            break
        chain = grown
    return chain


def _grown_once(chain: Proposal, text: _Text) -> Proposal:
    n_places, (n_tokens, d_sae) = len(chain.groups), text.fires.shape
    place_of = np.repeat(np.arange(n_places), [len(group) for group in chain.groups])
    members = np.array(chain.features)
    joins = sparse.csr_array((np.ones(len(members)), (members, place_of)), (d_sae, n_places))
    places = (text.fires @ joins).astype(bool).astype(np.float64)
    rate = np.asarray(places.sum(axis=0)) / n_tokens
    joined = _places_joined(_seen(places, text), text, rate, place_of, members)
    groups = [[*group] for group in chain.groups]
    for feature in np.flatnonzero(joined >= 0).tolist():
        groups[joined[feature]].append(feature)
    return chain._replace(groups=tuple(tuple(group) for group in groups))


def _seen(places: sparse.csr_array, text: _Text) -> _Seen:
    here = np.flatnonzero(np.diff(places.indptr))
    first = here[text.follows[here]]
    last = here[here > 0]
    last = last[text.follows[last - 1]]
    found = (
        places[first].T @ text.fires[first + 1],
        places[last].T @ text.fires[last - 1],
        places[last].T @ text.gives[last - 1],
        places[here].T @ text.fires[here],
    )
    return _Seen(*(one.toarray().astype(np.float64) for one in found))


def _places_joined(
    seen: _Seen,
    text: _Text,
    rate: NDArray[np.float64],
    place_of: NDArray[np.int64],
    members: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(d_sae,) the place that each feature joins, -1 for none."""
    n_places, d_sae = seen.comes.shape
    nothing = np.zeros((1, d_sae))
    comes = np.vstack([nothing, seen.comes[:-1]])  # after the place before this one
    leads = np.vstack([seen.leads[1:], nothing])
    given = np.vstack([seen.given[1:], nothing]) / np.maximum(leads, 1)
    chance = np.concatenate([[0.0], rate[:-1]]) + np.concatenate([rate[1:], [0.0]])
    p = poisson.sf(comes + leads - 1, np.outer(chance, text.n_fires))
    share = np.full((n_places, 1), MIN_SHARE)
    share[[0, -1]] = MIN_END_SHARE
    least = share * text.n_fires
    usual = np.array([np.median(given[at, members[place_of == at]]) for at in range(n_places)])
    fits = (p * n_places * d_sae <= MAX_P) & (seen.together <= MAX_TOGETHER * text.n_fires)
    fits[1:] &= comes[1:] >= least[1:]
    fits[:-1] &= (leads[:-1] >= least[:-1]) & (given[:-1] >= MIN_GIVEN * usual[:-1, None])
    fits &= text.is_free
    fits[:, members] = False
    best = np.where(fits, comes + leads, -1.0).argmax(axis=0)
    joined: NDArray[np.int64] = np.where(fits.any(axis=0), best, -1)
    return joined
