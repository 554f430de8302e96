"""A set of features -> states: which features belong, and which of them play one role.

1. Each feature starts as a state of its own; those that hang loosely on the others are left out.
2. States are merged where that loses least of what they say about the next token and the next state, until
   as few are left as a person reads and what comes next tells the next two well apart.
3. A state that is hardly ever current, says little, or hangs loosely on the others is dropped; step 2 is redone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from circuits.states import (
    information_bits,
    merge_order,
    merged_groups,
    outcome_table,
    state_sequence,
    steps_of,
    transition_matrix,
)
from sae_core.schema import TokenTable
from sae_core.store import select_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from circuits.propose import Proposal

MIN_STATE_STEPS = 25  # with fewer, a count's relative error 1 / sqrt(n) is over 20 %
MIN_STATE_BITS = 0.3  # a state that says less about what comes next is no state
MIN_BOUND = 0.4  # of a state's comings and goings, this share must be from and to others
MIN_BOUND_CLOSED = 0.2  # likewise in a closed set
FEATURE_BOUND = 0.75  # of that, what a feature that is not yet part of a state needs
LEFT_AT_ONCE = 10  # of so many features or states, the loosest one is left out, then all is redone
MAX_TOLD = 0.23  # states are one where outcomes tell less than this of which of the two it was
MAX_STATES = 40  # pictures draw fewer (`zoom`)
MAX_OUTCOMES = 3000  # (token, next state) kinds told apart while merging; the rest is one

Groups = list[tuple[int, ...]]


@dataclass(frozen=True)
class Text:
    """Tokens to count on, with all that is needed to read them."""

    tokens: TokenTable
    mean_act: NDArray[np.float64]
    """(d_sae,) mean activation of each feature where it fires."""

    token_strs: list[str]
    """Printable form of each vocabulary id."""

    def near(self, features: Sequence[int]) -> TokenTable:
        """Keep what some features did, and of the tokens those where one fires and the next ones.

        States are read again and again; this is all that they and their steps depend on.
        """
        order, starts, row_of = self._by_feature
        entries = [order[starts[feature] : starts[feature + 1]] for feature in features]
        kept = np.sort(np.concatenate(entries))
        fires = row_of[kept]
        rows = np.union1d(fires, fires + 1)
        rows = rows[: np.searchsorted(rows, len(self.tokens.token_ids))]
        n_fires = np.bincount(np.searchsorted(rows, fires), minlength=len(rows))
        columns = (column[rows] for column in self.tokens[:6])
        indptr = np.concatenate([[0], np.cumsum(n_fires)])
        lists = (values[kept] for values in self.tokens[7:])
        return TokenTable._make([*columns, indptr, *lists])

    @cached_property
    def _by_feature(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Order of the firings by feature, start of each feature in it, and row of each firing."""
        tokens = self.tokens
        order = np.argsort(tokens.features, kind="stable")
        n_fires = np.bincount(tokens.features, minlength=len(self.mean_act))
        rows = np.repeat(np.arange(len(tokens.token_ids)), np.diff(tokens.indptr))
        return order, np.concatenate([[0], np.cumsum(n_fires)]), rows


def shape(proposal: Proposal, text: Text) -> Groups:
    """Turn a set of features into the groups that are its states.

    Args:
        proposal: the set and how it was found.
        text: text to count on.

    Returns:
        The features of each state; empty when nothing of the set holds together.
    """
    groups: Groups = list(proposal.groups)
    text = replace(text, tokens=text.near(proposal.features))
    if proposal.kind != "system":
        return _without_idle(groups, text)
    bound = MIN_BOUND_CLOSED if proposal.closed else MIN_BOUND
    groups = _bound_features(groups, text, FEATURE_BOUND * bound)
    while groups:
        merged = _merged(groups, text)
        kept = _without_idle(merged, text, bound)
        if len(kept) == len(merged):
            return kept
        groups = [(feature,) for group in kept for feature in group]
    return []


def _bound_features(groups: Groups, text: Text, least: float) -> Groups:
    """Leave out the features that hang loosely on the others, a tenth of them at a time."""
    while len(groups) > 2:
        sequence = state_sequence(text.tokens, groups, text.mean_act)
        bound = _bound(sequence, text.tokens, len(groups))
        loose = np.flatnonzero(bound < least)
        if not len(loose):
            break
        worst = loose[np.argsort(bound[loose], kind="stable")][
            : max(1, len(groups) // LEFT_AT_ONCE)
        ]
        groups = [group for at, group in enumerate(groups) if at not in set(worst.tolist())]
    return groups


def _merged(groups: Groups, text: Text) -> Groups:
    if len(groups) < 3:
        return groups
    counts = _outcomes(groups, text)
    order = merge_order(counts)
    rows = counts.copy()
    n_merges = 0
    for merge in order:
        two = rows[[merge.a, merge.b]]
        if len(groups) - n_merges <= MAX_STATES and _told(two) > MAX_TOLD:
            break
        rows[merge.a] = two.sum(axis=0)
        n_merges += 1
    return merged_groups(groups, order, max(2, len(groups) - n_merges))


def _told(two: NDArray[np.int64]) -> float:
    """Give how much outcomes tell of which of two states it was: 0 nothing, 1 all.

    What few steps tell by chance is taken out (Miller 1955).

    Args:
        two: (2, n_outcomes) steps of each.
    """
    sizes = two.sum(axis=1)
    if not sizes.all():
        return 0.0
    n_kinds = int((two.sum(axis=0) > 0).sum())
    by_chance = (n_kinds - 1) / (2 * np.log(2) * sizes.sum())
    told: float = max(0.0, information_bits(two) - by_chance) / information_bits(np.diag(sizes))
    return told


def _outcomes(groups: Groups, text: Text) -> NDArray[np.int64]:
    sequence = state_sequence(text.tokens, groups, text.mean_act)
    counts, _ = outcome_table(steps_of(text.tokens, sequence), len(groups))
    if counts.shape[1] <= MAX_OUTCOMES:
        return counts
    by_size = np.argsort(-counts.sum(axis=0), kind="stable")
    rest = counts[:, by_size[MAX_OUTCOMES:]].sum(axis=1, keepdims=True)
    return np.hstack([counts[:, by_size[:MAX_OUTCOMES]], rest])


def _without_idle(groups: Groups, text: Text, least: float = 0.0) -> Groups:
    """Leave out states that are hardly ever current or say little, and the loosest if too loose."""
    sequence = state_sequence(text.tokens, groups, text.mean_act)
    counts, _ = outcome_table(steps_of(text.tokens, sequence), len(groups))
    keep = counts.sum(axis=1) >= MIN_STATE_STEPS
    if len(groups) > 1:
        keep &= _bits_said(counts) >= MIN_STATE_BITS
    if least and len(groups) > 2:
        bound = _bound(sequence, text.tokens, len(groups))
        loosest = np.argsort(bound, kind="stable")[: max(1, len(groups) // LEFT_AT_ONCE)]
        keep[loosest] &= bound[loosest] >= least
    return [group for group, good in zip(groups, keep, strict=True) if good]


def _bits_said(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give KL(outcomes of a state || outcomes of all), in bits, for each state."""
    n_steps = counts.sum(axis=1, keepdims=True)
    own = counts / np.maximum(n_steps, 1)
    overall = counts.sum(axis=0) / max(1, int(counts.sum()))
    ratio = np.divide(own, overall, out=np.ones_like(own), where=own > 0)
    bits: NDArray[np.float64] = (own * np.log2(ratio)).sum(axis=1)
    return bits


def _bound(sequence: NDArray[np.int32], tokens: TokenTable, n_states: int) -> NDArray[np.float64]:
    """Give the share of each state's comings and goings that are from and to the other states."""
    matrix = transition_matrix(steps_of(tokens, sequence), n_states)
    visits = np.bincount(sequence[sequence >= 0], minlength=n_states)
    inside = matrix[:, :-1].copy()
    stays = inside.diagonal().copy()
    np.fill_diagonal(inside, 0)
    moves = inside.sum(axis=1) + inside.sum(axis=0)
    bound: NDArray[np.float64] = moves / np.maximum(1, matrix.sum(axis=1) + visits - 2 * stays)
    return bound


def subsample(tokens: TokenTable, n_tokens: int) -> TokenTable:
    """Take whole windows, evenly through a text.

    Args:
        tokens: in text order.
        n_tokens: about how many tokens to keep.

    Returns:
        All tokens when there are no more than that, else about that many.
    """
    total = len(tokens.token_ids)
    if total <= n_tokens:
        return tokens
    share = n_tokens / total
    places = np.floor((tokens.window_ids.astype(np.float64) + 1) * share)
    keep = places > np.floor(tokens.window_ids * share)
    return select_tokens(tokens, keep)
