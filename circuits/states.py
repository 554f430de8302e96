"""States: which state of an automaton each token is in, what follows it, and which states to merge.

1. A token's state is the one with the largest sum of act / mean_act over its member features that fire; ties
   go to the lowest id; none above the threshold: outside (-1).
2. Steps are counted on that hard sequence: (state, next token, next state or EXIT), so each row sums to 1.
3. States are merged two at a time, each time the pair that loses least of I(state; next token, next state).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from circuits import kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sae_core.schema import TokenTable

OUTSIDE = -1
STATE_THRESHOLD = 0.7  # of a member's mean activation; weaker firings are mostly noise


class Steps(NamedTuple):
    """Every step taken from inside an automaton, one row a position p whose next token p + 1 is known."""

    rows: NDArray[np.int64]
    """(n,) row of p in the token table."""

    source: NDArray[np.int32]
    """(n,) state at p, >= 0."""

    target: NDArray[np.int32]
    """(n,) state at p + 1, or -1 for EXIT."""

    token: NDArray[np.int32]
    """(n,) vocabulary id of the token at p + 1."""


def has_next(tokens: TokenTable) -> NDArray[np.bool_]:
    """Say for each token whether the next row is its successor: same document, same window.

    Args:
        tokens: n tokens in text order.

    Returns:
        (n,) booleans; the last is False.
    """
    follows = np.zeros(len(tokens.token_ids), dtype=np.bool_)
    same_doc = tokens.doc_ids[1:] == tokens.doc_ids[:-1]
    follows[:-1] = same_doc & (tokens.window_ids[1:] == tokens.window_ids[:-1])
    return follows


def membership(groups: Sequence[Sequence[int]], d_sae: int) -> NDArray[np.int32]:
    """Give each feature's state.

    Args:
        groups: the features of each state; no feature in two states.
        d_sae: number of features.

    Returns:
        (d_sae,) state of each feature, -1 for none.
    """
    state_of = np.full(d_sae, OUTSIDE, dtype=np.int32)
    for state, features in enumerate(groups):
        state_of[list(features)] = state
    return state_of


def state_sequence(
    tokens: TokenTable, groups: Sequence[Sequence[int]], mean_act: NDArray[np.float64]
) -> NDArray[np.int32]:
    """Give the state of each token.

    Args:
        tokens: n tokens in text order.
        groups: the features of each state.
        mean_act: (d_sae,) mean activation of each feature where it fires.

    Returns:
        (n,) state, or -1 outside.
    """
    inverse = np.divide(1.0, mean_act, out=np.zeros_like(mean_act), where=mean_act > 0)
    out = np.empty(len(tokens.token_ids), dtype=np.int32)
    state_of = membership(groups, len(mean_act))
    scores = np.zeros(max(1, len(groups)))
    kernels.current_states(
        tokens.indptr, tokens.features, tokens.acts, state_of, inverse, STATE_THRESHOLD, scores, out
    )
    return out


def steps_of(tokens: TokenTable, states: NDArray[np.int32]) -> Steps:
    """List the steps taken from inside an automaton.

    Args:
        tokens: n tokens in text order.
        states: (n,) state of each token, -1 outside.

    Returns:
        The steps, in text order.
    """
    rows = np.flatnonzero(has_next(tokens) & (states >= 0))
    following = tokens.token_ids[rows + 1].astype(np.int32)
    return Steps(rows, states[rows], states[rows + 1], following)


def transition_matrix(steps: Steps, n_states: int) -> NDArray[np.int64]:
    """Count the steps.

    Args:
        steps: the steps.
        n_states: number of states.

    Returns:
        (n_states, n_states + 1) counts, row = source, column = target, the last column EXIT.
    """
    column = np.where(steps.target < 0, n_states, steps.target)
    flat = steps.source.astype(np.int64) * (n_states + 1) + column
    return np.bincount(flat, minlength=n_states * (n_states + 1)).reshape(n_states, n_states + 1)


def outcome_table(steps: Steps, n_states: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count each state's outcomes, an outcome being (next token, next state).

    Args:
        steps: the steps.
        n_states: number of states.

    Returns:
        (n_states, n_outcomes) counts, and (n_outcomes,) the next state of each outcome (-1 EXIT).
    """
    keys = steps.token.astype(np.int64) * (n_states + 1) + steps.target + 1
    outcomes, column = np.unique(keys, return_inverse=True)
    flat = steps.source.astype(np.int64) * len(outcomes) + column
    counts = np.bincount(flat, minlength=n_states * len(outcomes))
    return counts.reshape(n_states, len(outcomes)), outcomes % (n_states + 1) - 1


class Merge(NamedTuple):
    """One step of a merge tree: state `b` joins state `a`."""

    a: int
    b: int
    loss_bits: float
    """What the merge costs of I(state; next token, next state), in bits a step, >= 0."""


def merge_order(counts: NDArray[np.int64]) -> list[Merge]:
    """Merge states two at a time, each time the pair that loses least information.

    Args:
        counts: (n_states, n_outcomes) how often each state had each outcome.

    Returns:
        n_states - 1 merges; `a` < `b` are rows of `counts`, and `b`'s counts are then `a`'s.
    """
    rows = counts.astype(np.int64)
    sums = rows.sum(axis=1)
    total = int(sums.sum())
    n_log_n = _n_log_n(1 << total.bit_length())
    alive = np.ones(len(rows), dtype=bool)
    loss = np.full((len(rows), len(rows)), np.inf)
    for a in range(len(rows) - 1):
        loss[a, a + 1 :] = _costs(rows, sums, n_log_n, a, np.arange(a + 1, len(rows)))
    order: list[Merge] = []
    while len(order) < len(rows) - 1:
        a, b = divmod(int(np.argmin(loss)), len(rows))
        order.append(Merge(a, b, float(loss[a, b]) / max(1, total)))
        rows[a] += rows[b]
        sums[a] += sums[b]
        alive[[a, b]] = False
        loss[b, :] = loss[:, b] = np.inf
        others = np.flatnonzero(alive)
        alive[a] = True
        cost = _costs(rows, sums, n_log_n, a, others)
        loss[np.minimum(a, others), np.maximum(a, others)] = cost
    return order


def _costs(
    rows: NDArray[np.int64],
    sums: NDArray[np.int64],
    n_log_n: NDArray[np.float64],
    row: int,
    others: NDArray[np.int64],
) -> NDArray[np.float64]:
    cost = np.empty(len(others))
    kernels.merge_costs(rows, sums, n_log_n, row, others, np.flatnonzero(rows[row]), cost)
    return cost


@lru_cache(maxsize=4)
def _n_log_n(size: int) -> NDArray[np.float64]:
    """(size,) n log2 n of each n, 0 for 0."""
    n = np.arange(size, dtype=np.float64)
    return n * np.log2(n, out=np.zeros_like(n), where=n > 0)


def merged_groups(
    groups: Sequence[Sequence[int]], order: Sequence[Merge], n_states: int
) -> list[tuple[int, ...]]:
    """Apply the first merges of a tree until `n_states` groups are left.

    Args:
        groups: the features of each state, as the tree was made from.
        order: the tree.
        n_states: groups to leave, >= 1.

    Returns:
        The merged groups, in the order of their first member.
    """
    parts = {state: list(features) for state, features in enumerate(groups)}
    for merge in order[: max(0, len(groups) - n_states)]:
        parts[merge.a] += parts.pop(merge.b)
    return [tuple(features) for _, features in sorted(parts.items())]


def information_bits(counts: NDArray[np.int64]) -> float:
    """Give I(row; column) of a table of counts, in bits.

    Args:
        counts: (n_rows, n_columns), >= 0.
    """
    total = float(counts.sum())
    if total == 0:
        return 0.0
    rows = _weighted_entropy(counts.astype(np.float64)).sum()
    whole = float(_weighted_entropy(counts.sum(axis=0, keepdims=True).astype(np.float64))[0])
    return max(0.0, (whole - float(rows)) / total)


def _weighted_entropy(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give n * H(row) in bits for each row of counts, n being the row's sum."""
    table = np.atleast_2d(rows)
    sums = table.sum(axis=1)
    logs = np.log2(table, out=np.zeros_like(table), where=table > 0)
    log_sums = np.log2(sums, out=np.zeros_like(sums), where=sums > 0)
    result: NDArray[np.float64] = sums * log_sums - (table * logs).sum(axis=1)
    return result if rows.ndim > 1 else result[0]
