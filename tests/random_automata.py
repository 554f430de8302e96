"""Automata drawn at random whose rows sum to 1, for the tests of what holds of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from circuits.automaton import EXIT, EdgeToken, FeatureAutomaton, State, Transition

if TYPE_CHECKING:
    from collections.abc import Callable

D_VOCAB = 12
TOKEN_STRS = ("<", '"', "/", ":", "\\n", "->", "label", " ", "__start0 ->", "汉", "\\", "a")


@st.composite
def automata(draw: Callable[..., Any]) -> FeatureAutomaton:
    """Draw an automaton of 1 to 6 states with ids in any order.

    Every row sums to 1, EXIT among it, on tokens that an arrow lists whole, in part or not at all;
    some states have probabilities, but no pairs.
    """
    n_states = draw(st.integers(1, 6))
    ids = draw(st.permutations(range(10)))[:n_states]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    states = tuple(State(at, f"s{at}", (at,)) for at in ids)
    steps: list[Transition] = []
    for source in ids:
        steps += _row(source, ids, rng, has_pairs=draw(st.booleans()))
    name = draw(st.sampled_from(["chain-a", "loop-label", "system-start0"]))
    return FeatureAutomaton(name, name, "system", {}, states, tuple(steps))


def _row(
    source: int, ids: list[int], rng: np.random.Generator, *, has_pairs: bool
) -> list[Transition]:
    """Give the arrows out of one state, at least one, to states each once or to EXIT."""
    ends = [*ids, EXIT]
    chosen = rng.permutation(len(ends))[: rng.integers(1, len(ends) + 1)]
    pairs = rng.integers(1, 200, len(chosen))
    return [
        Transition(source, ends[end], n / pairs.sum(), _tokens(rng), "", int(n) if has_pairs else 0)
        for end, n in zip(chosen.tolist(), pairs.tolist(), strict=True)
    ]


def _tokens(rng: np.random.Generator) -> tuple[EdgeToken, ...]:
    ids = rng.permutation(D_VOCAB)[: rng.integers(0, 5)]
    shares = rng.dirichlet(np.ones(len(ids) + 1))[1:] if len(ids) else []
    whole = rng.random() < 0.5
    shares = shares / np.sum(shares) if whole and len(ids) else shares
    return tuple(
        EdgeToken(at, TOKEN_STRS[at], min(1.0, share))
        for at, share in zip(ids.tolist(), np.asarray(shares).tolist(), strict=True)
    )
