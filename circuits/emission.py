"""Emission: what an automaton says of the next token in each of its states, over the vocabulary.

1. A state's steps are read off its arrows. Those on tokens that no arrow of the state lists fall on
   the other tokens as the text's unigram.
2. They are smoothed by PRIOR_STEPS pseudo-steps of the spans' unigram, or for a single state, which
   has no other, of the whole text's: as when the automaton was scored (`circuits.fidelity`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from circuits.arrivals import visits
from circuits.fidelity import SMOOTHING, smoothed
from sae_core.errors import GraphError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from circuits.automaton import FeatureAutomaton


def next_tokens(
    automaton: FeatureAutomaton, state_id: int, token_counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Give P(next token | state).

    Args:
        automaton: the automaton.
        state_id: the state that is current.
        token_counts: (d_vocab,) occurrences of each token in the text, >= 0.

    Returns:
        (d_vocab,) probabilities, all > 0, that sum to 1. A state without counted steps has the
        unigram.

    Raises:
        GraphError: there is no such state, or an arrow has a token beyond the vocabulary.

    Example:
        >>> from circuits.automaton import EdgeToken, FeatureAutomaton, State, Transition
        >>> again = Transition(0, 0, 0.8, (EdgeToken(1, "a", 1.0),), "a", 120)
        >>> end = Transition(0, "EXIT", 0.2, (EdgeToken(2, "b", 1.0),), "b", 30)
        >>> automaton = FeatureAutomaton("a", "a", "loop", {}, (State(0, "a", (3,)),), (again, end))
        >>> next_tokens(automaton, 0, np.array([999, 999, 999, 999])).round(3).tolist()
        [0.062, 0.662, 0.212, 0.062]
    """
    automaton.state(state_id)
    _check_tokens(automaton, len(token_counts))
    text = _unigram(token_counts)
    totals = visits(automaton)
    steps = {
        state.id: _steps(automaton, state.id, totals[state.id], text) for state in automaton.states
    }
    spans = _unigram(np.sum(list(steps.values()), axis=0))
    base = spans if len(automaton.states) > 1 else text
    chance = smoothed(steps[state_id], totals[state_id], base)
    chance /= chance.sum()
    return chance


def _unigram(counts: NDArray[np.int64 | np.float64]) -> NDArray[np.float64]:
    raised = counts + SMOOTHING
    unigram: NDArray[np.float64] = raised / raised.sum()
    return unigram


def _steps(
    automaton: FeatureAutomaton, state_id: int, total: int, text: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give a state's steps on each token, those on tokens not listed among them."""
    listed = np.zeros_like(text)
    for step in automaton.leaving(state_id):
        for token in step.tokens:
            listed[token.token_id] += total * step.probability * token.share
    others = np.where(listed > 0, 0.0, text)
    others = others if others.any() else text
    listed += max(0.0, total - listed.sum()) * others / others.sum()
    return listed


def _check_tokens(automaton: FeatureAutomaton, d_vocab: int) -> None:
    top = max((t.token_id for step in automaton.transitions for t in step.tokens), default=0)
    if top >= d_vocab:
        raise GraphError(
            f"automaton {automaton.name} has token {top}, but the vocabulary has {d_vocab}; "
            "take the run that it was found in"
        )
