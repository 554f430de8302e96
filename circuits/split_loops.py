"""Loops that are split over several features, by text or by token.

A loop's feature that is split by text has no edge to its other parts: they are never in one document.
One that is split by token leads to itself seldom: the other parts share what follows. Either way

1. all parts promote the same of the tokens that come next, and
2. no two fire together.

Features for which both hold, and that follow themselves, are counted anew as one feature. They are a
loop where that one is.

Source: Bricken et al. 2023, "Feature Splitting"; Bhattacharyya 1943 (the overlap of distributions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import sparse
from scipy.sparse import csgraph

from circuits.edge_tables import IS_EDGE
from circuits.evidence import pair_table
from circuits.propose import Proposal, leads_to_itself
from circuits.states import has_next
from sae_core.statistics import PROMOTION_THRESHOLD, collect

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from circuits.shape import Text
    from sae_core.schema import TokenTable

MIN_SHARED = 0.85  # overlap of what two parts promote; 200 draws each from 20 tokens reach 0.97
MIN_PART_SHARE = (
    0.1  # of what it promotes fires it again; a loop in more than ten parts stays apart
)
MAX_TOGETHER = 0.1  # of the rarer one's tokens, the other fires on fewer


def split_loops(edges: pl.DataFrame, text: Text) -> list[Proposal]:
    """Find loops whose features are no loops, or not all of it, by themselves.

    Args:
        edges: the graph's edge table.
        text: training text.

    Returns:
        Each as one group of features, in ascending order.
    """
    again = pl.col("p_target_given_promoted") >= MIN_PART_SHARE
    loops = edges.filter(pl.col("source") == pl.col("target"), again)
    groups = _alike(text, np.sort(loops["source"].to_numpy())) if len(loops) > 1 else []
    if not groups:
        return []
    pairs = pair_table(collect(_as_one(text.tokens, groups), len(groups), len(text.token_strs)))
    found = pairs.filter(IS_EDGE & leads_to_itself())["source"].to_list()
    return [Proposal((groups[at],), "loop") for at in sorted(found)]


def _alike(text: Text, features: NDArray[np.uint32]) -> list[tuple[int, ...]]:
    """Group features that promote the same and never fire together."""
    fires, promoted = _counted(text, features)
    n_fires = fires.sum(axis=0)
    share = sparse.diags_array(1 / np.maximum(promoted.sum(axis=1), 1)) @ promoted
    root = share.tocsr().sqrt()
    overlap = (root @ root.T).toarray()
    together = (fires.T @ fires).toarray()
    rarer = np.minimum.outer(n_fires, n_fires)
    linked = (overlap >= MIN_SHARED) & (together <= MAX_TOGETHER * rarer)
    n_groups, group_of = csgraph.connected_components(sparse.csr_array(linked), directed=False)
    groups = (np.flatnonzero(group_of == at) for at in range(n_groups))
    return [tuple(features[group].tolist()) for group in groups if len(group) > 1]


def _counted(text: Text, features: NDArray[np.uint32]) -> tuple[sparse.csr_array, sparse.csr_array]:
    """(n_tokens, n) where each feature fires; (n, d_vocab) how often it promoted the next token."""
    tokens = text.tokens
    n = len(tokens.token_ids)
    rows = np.repeat(np.arange(n), np.diff(tokens.indptr))
    known = np.isin(tokens.features, features)
    rows, column = rows[known], np.searchsorted(features, tokens.features[known])
    fires = sparse.csr_array((np.ones(len(rows)), (rows, column)), shape=(n, len(features)))
    promotes = (tokens.promotions[known] > PROMOTION_THRESHOLD) & has_next(tokens)[rows]
    came = tokens.token_ids[rows[promotes] + 1]
    shape = (len(features), len(text.token_strs))
    ones = np.ones(len(came))
    return fires, sparse.csr_array((ones, (column[promotes], came)), shape=shape)


def _as_one(tokens: TokenTable, groups: list[tuple[int, ...]]) -> TokenTable:
    """Put one feature in the place of each group; where two of it fire, the stronger counts."""
    members = np.array([feature for group in groups for feature in group])
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.argsort(members)
    rows = np.repeat(np.arange(len(tokens.token_ids)), np.diff(tokens.indptr))
    kept = np.flatnonzero(np.isin(tokens.features, members))
    group = owner[order][np.searchsorted(members[order], tokens.features[kept])]
    by_row = np.lexsort((-tokens.acts[kept], group, rows[kept]))
    kept, group = kept[by_row], group[by_row]
    first = np.ones(len(kept), dtype=bool)
    first[1:] = (np.diff(rows[kept]) > 0) | (np.diff(group) > 0)
    kept, group = kept[first], group[first]
    n_fires = np.bincount(rows[kept], minlength=len(tokens.token_ids))
    return tokens._replace(
        indptr=np.concatenate([[0], np.cumsum(n_fires)]),
        features=group.astype(np.uint32),
        acts=tokens.acts[kept],
        promotions=tokens.promotions[kept],
    )
