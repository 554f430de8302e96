"""How well sets of features match the machines that a world hides.

1. Overlap: for each machine, the largest Jaccard similarity of its features, all features of all its
   states, with a set.
2. False sets: those whose similarity with every machine is below MIN_MATCH.
3. States: of the automaton that overlaps most, the adjusted Rand index of its states with the
   planted ones, over the machine's features.

Features of one token each are set aside: what they lead to is real, but they are no part of a
machine. A set that holds nothing else counts neither way. All others count: noise, decoys, onlookers,
topics and features of whole spans have no place in an automaton.

Source: Hubert and Arabie 1985 (adjusted Rand index).
"""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from planted import PlantedWorld

    from circuits.automaton import FeatureAutomaton

MIN_MATCH = 0.5  # below it, less is shared than not
KINDS = ("loop", "pair", "system", "chain")


class Matches(NamedTuple):
    """What a way to find automata gave in one world."""

    overlaps: dict[str, float]
    """Mean of the machines' best overlap, by kind."""

    n_sets: int
    """Sets that count."""

    n_false: int


def matches(world: PlantedWorld, sets: Iterable[Iterable[int]]) -> Matches:
    """Compare sets of features with the planted machines."""
    found = judged(world, sets)
    best = [max((jaccard(truth, one) for one in found), default=0.0) for truth in world.groups]
    false = [max(jaccard(truth, one) for truth in world.groups) < MIN_MATCH for one in found]
    overlaps = {
        kind: mean(value for value, of in zip(best, world.kinds, strict=True) if of == kind)
        for kind in KINDS
    }
    return Matches(overlaps, len(found), sum(false))


def judged(world: PlantedWorld, sets: Iterable[Iterable[int]]) -> list[frozenset[int]]:
    """Take features of single tokens out of each set, and leave out what is empty then."""
    found = (frozenset(one) - world.identity for one in sets)
    return [one for one in found if one]


def mark(found: Sequence[Matches], kinds: Sequence[str] = KINDS) -> float:
    """Give one number to choose settings by: high overlaps with few false sets.

    Args:
        found: what one way gave in several worlds.
        kinds: that it is meant for.

    Returns:
        Harmonic mean of the mean overlap over kinds and worlds, and the share of sets, pooled over
        worlds, that are not false; in [0, 1].
    """
    overlap = mean(one.overlaps[kind] for one in found for kind in kinds)
    right = 1 - false_share(found)
    return 2 * overlap * right / max(overlap + right, 1e-12)


def false_share(found: Sequence[Matches]) -> float:
    """Give the share of all sets that are false; 1 where there is no set."""
    n_sets = sum(one.n_sets for one in found)
    return sum(one.n_false for one in found) / n_sets if n_sets else 1.0


def state_agreement(
    world: PlantedWorld, automata: Sequence[FeatureAutomaton]
) -> dict[str, list[float]]:
    """Give the adjusted Rand index of each machine with several states, by kind.

    Features that the best automaton of a machine lacks count as states of their own.
    """
    found: dict[str, list[float]] = {kind: [] for kind in KINDS if kind != "loop"}
    for kind, truth, states in zip(world.kinds, world.groups, world.states, strict=True):
        if len(states) < 2:
            continue
        of = {feature: at for at, features in enumerate(states) for feature in features}
        best = max(
            ([set(state.features) for state in one.states] for one in automata),
            key=lambda parts: jaccard(truth, frozenset().union(*parts) - world.identity),
            default=[],
        )
        mine = {feature: at for at, part in enumerate(best) for feature in part}
        features = sorted(truth)
        found[kind].append(
            adjusted_rand([of[i] for i in features], [mine.get(i, -1 - i) for i in features])
        )
    return found


def adjusted_rand(one: Sequence[int], other: Sequence[int]) -> float:
    """Compare two ways to group the same things: 1 where they agree, about 0 by chance.

    Args:
        one: group of each thing.
        other: the same, the other way.

    Example:
        >>> adjusted_rand([0, 0, 1, 1], [7, 7, 3, 3])
        1.0
    """
    counts = np.unique(np.array([one, other]), axis=1, return_counts=True)[1]
    both = _n_pairs(counts)
    alone = [_n_pairs(np.unique(column, return_counts=True)[1]) for column in (one, other)]
    expected = alone[0] * alone[1] / max(1.0, len(one) * (len(one) - 1) / 2)
    largest = sum(alone) / 2
    if largest == expected:  # all apart, or all together, both ways
        return 1.0
    return (both - expected) / (largest - expected)


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Give the share of the features of either that are in both."""
    return len(one & other) / len(one | other)


def _n_pairs(sizes: NDArray[np.int64]) -> float:
    """Give how many pairs of things share a group."""
    return float((sizes * (sizes - 1) / 2).sum())
