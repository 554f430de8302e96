"""Traces: an automaton read over a text, a row a token; and texts drawn from it.

1. By features: the state of each token is the one whose features fire most (`circuits.states`).
2. By tokens: the automaton alone reads. Outside, a token enters the state that it most often leads
   to; inside, the most probable arrow on that token is taken, and a token on no arrow leads
   outside. It knows nothing of text outside its spans, so a token that is common there is entered
   all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import polars as pl

from circuits.arrivals import arrivals, first_state
from circuits.automaton import EXIT
from circuits.states import OUTSIDE, has_next, membership, state_sequence
from sae_core.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from circuits.automaton import FeatureAutomaton
    from sae_core.schema import TokenTable

By = Literal["features", "tokens"]
MIN_ENTRY = (
    0.05  # of a state's commonest token; on rarer ones, misfires are more common than entries
)
N_PROMOTED = 5  # next tokens named a row; more are not read
TRACE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "source": pl.String,
    "doc_id": pl.UInt32,
    "pos": pl.UInt32,
    "token_str": pl.String,
    "byte_end": pl.Int64,
    "state": pl.Int64,
    "features": pl.List(pl.UInt32),
    "probability": pl.Float64,
    "promoted": pl.List(pl.String),
}


class _Reader(NamedTuple):
    """An automaton's arrows, by what a reader of tokens looks up."""

    entry: dict[str, int]
    """token_str -> the state that it most often leads to."""

    steps: dict[tuple[int, str], int | None]
    """(state, token_str) -> the most probable next state; None for EXIT."""

    chances: dict[tuple[int, str], float]
    """(state, token_str) -> P(token | state)."""

    promoted: dict[int, list[str]]
    """State -> its likeliest next tokens."""


def trace(
    automaton: FeatureAutomaton,
    tokens: TokenTable,
    *,
    token_strs: Sequence[str],
    sources: Mapping[int, str],
    mean_act: NDArray[np.float64] | None = None,
    by: By = "features",
) -> pl.DataFrame:
    """Run an automaton over tokens.

    Args:
        automaton: the automaton.
        tokens: n tokens in text order; by tokens, what fires on them is not looked at.
        token_strs: printable form of each vocabulary id.
        sources: doc_id -> where the document came from.
        mean_act: (d_sae,) mean activation of each feature where it fires; needed by features.
        by: "features" or "tokens".

    Returns:
        One row a token: source, doc_id, pos, token_str, byte_end, state (null outside), features
        (those of the state that fire; none by tokens), probability (of this token from the state
        before; null when that is outside or of another window, 0 when no arrow of it lists the
        token), promoted (next tokens).

    Raises:
        ValueError: by is neither, or mean_act is missing.
        GraphError: the automaton has a feature that the dictionary has not.
    """
    if by not in ("features", "tokens"):
        raise ValueError(f'by must be "features" or "tokens", got {by!r}')
    texts = [token_strs[token] for token in tokens.token_ids.tolist()]
    follows = has_next(tokens)
    fired: list[list[int]] = [[] for _ in texts]
    if by == "tokens":
        states = states_by_tokens(automaton, texts, follows)
    else:
        if mean_act is None:
            raise ValueError("mean_act is missing; reading by features needs it")
        states, fired = _states_by_features(automaton, tokens, mean_act)
    columns = {
        "source": [sources[doc] for doc in tokens.doc_ids.tolist()],
        "doc_id": tokens.doc_ids,
        "pos": tokens.pos,
        "token_str": texts,
        "byte_end": tokens.byte_end,
    }
    return _frame(automaton, columns, states, fired, follows)


def states_by_tokens(
    automaton: FeatureAutomaton, texts: Sequence[str], follows: NDArray[np.bool_]
) -> list[int | None]:
    """Give the state after each token when the automaton alone reads.

    Args:
        automaton: the automaton.
        texts: printable form of each of n tokens.
        follows: (n,) whether the next token is of the same window, as of `circuits.states.has_next`.

    Returns:
        (n,) state ids, None outside.
    """
    reader = _reader_of(automaton)
    states: list[int | None] = []
    here: int | None = None
    for text, goes_on in zip(texts, follows.tolist(), strict=True):
        here = reader.entry.get(text) if here is None else reader.steps.get((here, text))
        states.append(here)
        if not goes_on:
            here = None
    return states


def sample(automaton: FeatureAutomaton, n_tokens: int, seed: int) -> list[str]:
    """Draw a text: a random walk along the arrows, from the most visited state to EXIT.

    Args:
        automaton: the automaton.
        n_tokens: tokens to draw at most, >= 0.
        seed: the same seed gives the same text.

    Returns:
        Printable tokens, the one that led to EXIT the last. An arrow that names no token adds
        none; what the probabilities of a state lack to 1 leads to EXIT.

    Raises:
        ValueError: n_tokens is negative.

    Example:
        >>> from circuits.automaton import EdgeToken, FeatureAutomaton, State, Transition
        >>> again = Transition(0, 0, 0.75, (EdgeToken(1, "a", 1.0),), "a", 75)
        >>> end = Transition(0, "EXIT", 0.25, (EdgeToken(2, "b", 1.0),), "b", 25)
        >>> state = State(0, "a", (3,))
        >>> "".join(sample(FeatureAutomaton("a", "a", "loop", {}, (state,), (again, end)), 9, 0))
        'aab'
    """
    if n_tokens < 0:
        raise ValueError(f"n_tokens must be >= 0, got {n_tokens}")
    rng = np.random.default_rng(seed)
    leaving = {state.id: automaton.leaving(state.id) for state in automaton.states}
    here: int | Literal["EXIT"] = first_state(automaton)
    out: list[str] = []
    for _ in range(n_tokens):
        steps = leaving[here] if isinstance(here, int) else ()
        at = _draw([step.probability for step in steps], rng, total=1.0)
        if at is None:
            break
        token = _draw([token.share for token in steps[at].tokens], rng)
        if token is not None:
            out.append(steps[at].tokens[token].token_str)
        here = steps[at].target
    return out


def _draw(weights: Sequence[float], rng: np.random.Generator, total: float = 0.0) -> int | None:
    """Draw an index by weight; None for what the weights lack to `total`, or where all are 0."""
    ends = np.cumsum([0.0, *weights])
    point = rng.random() * max(total, float(ends[-1]))
    at = int(np.searchsorted(ends, point, side="right")) - 1
    return at if at < len(weights) else None


def _reader_of(automaton: FeatureAutomaton) -> _Reader:
    """Look up the automaton's arrows; ties go to the lowest state, EXIT last."""
    entry: dict[str, tuple[float, int]] = {}
    for state, mass in sorted(arrivals(automaton).items()):
        floor = MIN_ENTRY * max(mass.values(), default=0.0)
        for text, pairs in mass.items():
            if pairs >= floor and pairs > entry.get(text, (0.0, 0))[0]:
                entry[text] = (pairs, state)
    best: dict[tuple[int, str], tuple[float, int | None]] = {}
    chances: dict[tuple[int, str], float] = {}
    order = sorted(automaton.transitions, key=lambda step: (step.target == EXIT, str(step.target)))
    for step in order:
        target = step.target if isinstance(step.target, int) else None
        for token in step.tokens:
            key, chance = (step.source, token.token_str), step.probability * token.share
            chances[key] = chances.get(key, 0.0) + chance
            if chance > best.get(key, (0.0, None))[0]:
                best[key] = (chance, target)
    promoted: dict[int, list[tuple[float, str]]] = {state.id: [] for state in automaton.states}
    for (state, text), chance in chances.items():
        promoted[state].append((-chance, text))
    return _Reader(
        {text: state for text, (_, state) in entry.items()},
        {key: target for key, (_, target) in best.items()},
        {key: min(1.0, chance) for key, chance in chances.items()},
        {state: [text for _, text in sorted(of)[:N_PROMOTED]] for state, of in promoted.items()},
    )


def _states_by_features(
    automaton: FeatureAutomaton, tokens: TokenTable, mean_act: NDArray[np.float64]
) -> tuple[list[int | None], list[list[int]]]:
    if automaton.features and automaton.features[-1] >= len(mean_act):
        raise GraphError(
            f"automaton {automaton.name} has feature {automaton.features[-1]}, but the dictionary "
            f"has {len(mean_act)}; trace it over the run that it was found in"
        )
    groups = [state.features for state in automaton.states]
    sequence = state_sequence(tokens, groups, mean_act)
    ids = [state.id for state in automaton.states]
    states = [None if at == OUTSIDE else ids[at] for at in sequence.tolist()]
    rows = np.repeat(np.arange(len(sequence)), np.diff(tokens.indptr))
    state_of = membership(groups, len(mean_act))[tokens.features]
    mine = (state_of != OUTSIDE) & (state_of == sequence[rows])
    ends = np.cumsum(np.bincount(rows[mine], minlength=len(sequence))).tolist()
    kept = tokens.features[mine].tolist()
    starts = [0, *ends[:-1]]
    return states, [kept[a:b] for a, b in zip(starts, ends, strict=True)] if ends else []


def _frame(
    automaton: FeatureAutomaton,
    columns: dict[str, Any],
    states: Sequence[int | None],
    fired: Sequence[Sequence[int]],
    follows: NDArray[np.bool_],
) -> pl.DataFrame:
    reader = _reader_of(automaton)
    before: list[int | None] = [None, *states[:-1]] if states else []
    joined = [False, *follows[:-1].tolist()]
    chances = [
        None if state is None or not linked else reader.chances.get((state, text), 0.0)
        for state, linked, text in zip(before, joined, columns["token_str"], strict=False)
    ]
    told = [[] if state is None else reader.promoted[state] for state in states]
    rest = {"state": states, "features": fired, "probability": chances, "promoted": told}
    return pl.DataFrame(columns | rest, schema=TRACE_SCHEMA)
