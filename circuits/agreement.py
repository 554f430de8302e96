"""Measured effects of edges -> those of an automaton's arrows, and how many of them are sure.

1. The effect of an arrow from a state to a state is the mean over the measured edges from features of
   the one to features of the other, weighted by their pairs; EXIT has no features, and no effect.
2. An arrow agrees where its effect is positive by more than Z_SURE standard errors.
3. `causal_agreement` is the share of the main arrows that agree, of those that were measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from circuits.automaton import EXIT

if TYPE_CHECKING:
    from circuits.automaton import FeatureAutomaton, Transition

MAIN_PROBABILITY = 0.1  # arrows that are taken less often are not what the automaton does
Z_SURE = 2.0  # standard errors; one arrow in forty without effect would agree
AGREEMENT = "causal_agreement"
COLUMNS = ("source", "target", "n_pairs", "causal", "causal_stderr")


class Effect(NamedTuple):
    """What was measured of one arrow."""

    mean: float
    """As `causal` of the edges it comes of."""

    stderr: float

    @property
    def agrees(self) -> bool:
        """Whether it is surely positive."""
        return self.mean > Z_SURE * self.stderr


def with_effects(automaton: FeatureAutomaton, edges: pl.DataFrame) -> FeatureAutomaton:
    """Give an automaton with the measured effects of its arrows, and their agreement as a score.

    Args:
        automaton: whose arrows have none yet.
        edges: the graph's edge table; causal is null where it was not measured.

    Returns:
        The same with `causal` of each arrow and the score `causal_agreement`, in [0, 1]; None where
        nothing was measured.
    """
    effects = _effects(automaton, edges.drop_nulls(COLUMNS))
    steps = [(step, effects.get((step.source, step.target))) for step in automaton.transitions]
    main = [effect.agrees for step, effect in steps if effect is not None and _is_main(step)]
    share = sum(main) / len(main) if main else None
    return replace(
        automaton,
        transitions=tuple(
            replace(step, causal=effect.mean) if effect else step for step, effect in steps
        ),
        scores=automaton.scores | {AGREEMENT: share},
    )


def _is_main(step: Transition) -> bool:
    return step.target != EXIT and step.probability >= MAIN_PROBABILITY


def _effects(
    automaton: FeatureAutomaton, measured: pl.DataFrame
) -> dict[tuple[int, int | str], Effect]:
    """Give the effects of the arrows that were measured, by source and target."""
    state_of = {feature: state.id for state in automaton.states for feature in state.features}
    inside = pl.col("source", "target").is_in(list(state_of))
    rows = measured.filter(pl.all_horizontal(inside))
    found: dict[tuple[int, int | str], list[tuple[float, float, float]]] = defaultdict(list)
    for source, target, *numbers in rows.select(*COLUMNS).rows():
        found[state_of[source], state_of[target]].append(tuple(numbers))
    return {ends: _mean(edges) for ends, edges in found.items()}


def _mean(edges: list[tuple[float, float, float]]) -> Effect:
    """Give the mean of (n_pairs, causal, causal_stderr), of draws that were made apart."""
    total = sum(n_pairs for n_pairs, _, _ in edges)
    mean = sum(n_pairs * causal for n_pairs, causal, _ in edges) / total
    spread = math.hypot(*(n_pairs * stderr for n_pairs, _, stderr in edges)) / total
    return Effect(mean, spread)
