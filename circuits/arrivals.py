"""Arrivals: how often each state of a stored automaton is current, and what tokens lead to it.

An automaton's file counts its arrows, not its visits: visits are the pairs that leave a state. A
state to which no arrow leads is entered from outside; on which tokens, its examples show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuits.automaton import FeatureAutomaton


def visits(automaton: FeatureAutomaton) -> dict[int, int]:
    """Count how often each state was current with a token after it.

    Args:
        automaton: a stored automaton.

    Returns:
        State id -> pairs counted on its arrows, EXIT among them.
    """
    counts = {state.id: 0 for state in automaton.states}
    for step in automaton.transitions:
        counts[step.source] += step.n_pairs
    return counts


def first_state(automaton: FeatureAutomaton) -> int:
    """Give the state from which the automaton is walked: the most visited; ties to the lowest id."""
    seen = visits(automaton)
    return min(seen, key=lambda state_id: (-seen[state_id], state_id))


def arrivals(automaton: FeatureAutomaton) -> dict[int, dict[str, float]]:
    """Give the tokens on which each state is reached.

    Args:
        automaton: a stored automaton.

    Returns:
        State id -> {token_str: pairs} over the arrows to it; where there is none, its visits,
        spread evenly over the tokens on which its examples fire. (Examples are too few to add where
        arrows are known: one that shows a misfire would outweigh them.)
    """
    found: dict[int, dict[str, float]] = {state.id: {} for state in automaton.states}
    for step in automaton.transitions:
        if isinstance(step.target, int):
            for token in step.tokens:
                _add(found[step.target], token.token_str, step.n_pairs * token.share)
    for state_id, total in visits(automaton).items():
        if not found[state_id]:
            examples = automaton.state(state_id).examples
            for example in examples:
                _add(found[state_id], example.tokens[example.focus], total / len(examples))
    return found


def _add(mass: dict[str, float], token_str: str, pairs: float) -> None:
    if pairs > 0:
        mass[token_str] = mass.get(token_str, 0.0) + pairs
