"""Why a run has no automaton, and what is nearest to one: which number, and how much is wanted.

1. Without edges, the graph's own reason stands.
2. Without a candidate set, strong edges are counted; without any, the best edge is named with its
   numbers beside those that are wanted.
3. Otherwise the candidate is named that came nearest to running: first by its steps, then by how
   much more often than other tokens it stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from circuits.assemble import MIN_RETENTION_LIFT, MIN_STEPS, is_supported
from circuits.fidelity import training_scores
from circuits.propose import MIN_BURST, MIN_CHAIN, MIN_LIFT, MIN_SCORES, strong_edges
from circuits.shape import shape
from circuits.states import state_sequence, steps_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from circuits.propose import Proposal
    from circuits.shape import Text

MORE = "give more text"


class _Try(NamedTuple):
    """How near a candidate came; ordered by it."""

    n_steps: int
    """At most the number that is wanted."""

    retention_lift: float
    features: tuple[int, ...]
    is_supported: bool = True
    """Whether it saves bits on documents that it was not counted on."""


def why_no_automaton(
    edges: pl.DataFrame, reason: str, proposals: Sequence[Proposal], text: Text, sample: Text
) -> str:
    """Say in words why no automaton was found.

    Args:
        edges: the graph's edge table, best first.
        reason: why it is empty; "" where it is not.
        proposals: candidate sets.
        text: training text.
        sample: part of it, on which states are shaped.
    """
    if edges.is_empty():
        return reason or f"the graph has no edges; {MORE}"
    if not proposals:
        return _why_no_candidate(edges)
    nearest = max((_tried(one, text, sample) for one in proposals), key=lambda one: one[:2])
    names = ", ".join(map(str, nearest.features))
    if nearest.n_steps < MIN_STEPS:
        found = f"takes {nearest.n_steps} steps ({MIN_STEPS} are wanted)"
    elif nearest.retention_lift >= MIN_RETENTION_LIFT and not nearest.is_supported:
        found = "saves no bits for sure on documents other than those it was counted on"
    else:
        lift = nearest.retention_lift
        found = f"keeps to itself {lift:.3g} times as often as chance ({MIN_RETENTION_LIFT})"
    return (
        f"none of {len(proposals)} candidate sets runs as one: the nearest, of features {names}, "
        f"{found}; {MORE}"
    )


def _why_no_candidate(edges: pl.DataFrame) -> str:
    n_strong = len(strong_edges(edges, min(MIN_SCORES)))
    if n_strong:
        return (
            f"{n_strong} strong edges make no loop, no pair, no system of 3 features and no chain "
            f"of {MIN_CHAIN}; {MORE}"
        )
    best = edges.row(0, named=True)
    return (
        f"no edge carries an automaton: the best, {best['source']} -> {best['target']}, has score "
        f"{best['score']:.3g} ({min(MIN_SCORES)} is wanted), lift {best['lift']:.3g} ({MIN_LIFT}) "
        f"and burst_ratio {best['burst_ratio']:.3g} ({MIN_BURST}); {MORE}"
    )


def _tried(proposal: Proposal, text: Text, sample: Text) -> _Try:
    groups = shape(proposal, sample)
    if not groups:
        return _Try(0, 0.0, proposal.features)
    sequence = state_sequence(text.tokens, groups, text.mean_act)
    steps = steps_of(text.tokens, sequence)
    if len(steps.rows) < MIN_STEPS:
        return _Try(len(steps.rows), 0.0, proposal.features)
    scores = training_scores(text.tokens, sequence, steps, len(groups))
    supported = is_supported(scores, text.tokens)
    return _Try(MIN_STEPS, scores.retention_lift, proposal.features, supported)
