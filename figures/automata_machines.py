"""Machines with as many states as an automaton, made without it: hidden Markov models and clusters.

1. `spans_of` takes what an automaton's spans hold as sequences of tokens: each span, and the token
   that ends it. A sequence of n + 1 tokens is n steps, those that the automaton is scored on.
2. `fit_hmm` fits a hidden Markov model to them: expectation maximisation, all spans of a length
   read side by side. Emissions are smoothed as an automaton's (`circuits.fidelity.smoothed`).
   Of several starts the one that explains the training text best is kept.
3. `HiddenMarkovModel.step_chances` predicts each next token from the tokens of the span before it:
   the forward filter.
4. `Clusters` are those of k-means on the raw neurons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from circuits.fidelity import smoothed
from circuits.states import has_next

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sae_core.schema import TokenTable

AUTOMATON, HMM, CLUSTERS = "automaton", "HMM", "k-means on neurons"  # as they are called
SEEDS = (0, 1, 2, 3, 4)
TRIAL_STEPS = 40_000  # of the training spans, on which each start is tried
TRIAL_ROUNDS = 20
MAX_ROUNDS = 100
MIN_GAIN = 1e-4  # nats a token; below, what is left to gain changes no second digit
PSEUDO_MOVES = 1.0  # of each state, spread over all states, so that no move is impossible
FIT_ROWS = 40_000  # evenly spaced, on which clusters are fitted
BATCH_ROWS = 4096
N_STARTS = 3


class Spans(NamedTuple):
    """Sequences of tokens of unlike lengths, the longest first, laid out by place in the sequence."""

    token_ids: NDArray[np.int64]
    """(n,) all first tokens, then all second ones, ..."""

    rows: NDArray[np.int64]
    """(n,) row of each in the token table."""

    starts: NDArray[np.int64]
    """(longest + 1,) where each place begins in the two above."""

    @property
    def n_steps(self) -> int:
        """Tokens that are predicted: all but the first of each sequence."""
        return len(self.token_ids) - int(self.starts[1]) if len(self.token_ids) else 0


class HiddenMarkovModel(NamedTuple):
    """A hidden Markov model over tokens."""

    first: NDArray[np.float64]
    """(n_states,) P(state at a span's first token)."""

    moves: NDArray[np.float64]
    """(n_states, n_states) P(next state | state)."""

    emits: NDArray[np.float64]
    """(n_states, d_vocab) P(token | state)."""

    def step_chances(self, spans: Spans) -> NDArray[np.float64]:
        """Predict the second and all later tokens of each span by those before them.

        Args:
            spans: n steps.

        Returns:
            (n,) probability of each, in the order of their rows.
        """
        _, chances = _forward(self, spans, _seen(self, spans))
        later = slice(int(spans.starts[1]), None)
        order = np.argsort(spans.rows[later])
        return chances[later][order]


class Clusters:
    """Groups of alike vectors of neurons."""

    def __init__(self, neurons: NDArray[np.floating], n_clusters: int, *, seed: int = 0) -> None:
        """Fit by k-means, on at most FIT_ROWS of the rows.

        Args:
            neurons: (n, d_in) at least one row.
            n_clusters: as many as wanted; fewer where there are fewer different rows.
            seed: of the starts.
        """
        from sklearn.cluster import MiniBatchKMeans  # noqa: PLC0415 - an extra, needed here alone

        sample = neurons[:: max(1, len(neurons) // FIT_ROWS)].astype(np.float32)
        n_different = len(np.unique(sample[: 4 * n_clusters], axis=0))
        if n_different < n_clusters:
            n_different = len(np.unique(sample, axis=0))
        self._fitted = MiniBatchKMeans(
            min(n_clusters, n_different),
            random_state=seed,
            n_init=N_STARTS,
            batch_size=BATCH_ROWS,
        ).fit(sample)

    def of(self, neurons: NDArray[np.floating]) -> NDArray[np.int64]:
        """Give the cluster of each row: (n, d_in) to (n,)."""
        parts = [
            self._fitted.predict(neurons[at : at + BATCH_ROWS].astype(np.float32))
            for at in range(0, len(neurons), BATCH_ROWS)
        ]
        return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def spans_of(
    tokens: TokenTable, states: NDArray[np.integer], *, max_steps: int | None = None
) -> Spans:
    """Give an automaton's spans as sequences, each with the token that comes after it.

    Args:
        tokens: n tokens in text order.
        states: (n,) state of each, -1 outside.
        max_steps: take whole spans, evenly spaced, up to about so many steps; None takes all.

    Returns:
        The spans that have a step; their steps are those of `circuits.states.steps_of`.
    """
    steps = np.flatnonzero(has_next(tokens) & (states >= 0))
    is_first = np.ones(len(steps), dtype=np.bool_)
    is_first[1:] = np.diff(steps) > 1
    begins = np.flatnonzero(is_first)
    lengths = np.diff(np.append(begins, len(steps)))
    if max_steps is not None and len(steps) > max_steps:
        every = -(-len(steps) // max_steps)
        begins, lengths = begins[::every], lengths[::every]
    order = np.argsort(-lengths, kind="stable")
    first, sizes = steps[begins[order]], lengths[order] + 1
    longest = int(sizes.max(initial=0))
    alive = [int(np.searchsorted(-sizes, -place, side="left")) for place in range(longest)]
    rows = np.concatenate([np.empty(0, np.int64), *(first[:n] + at for at, n in enumerate(alive))])
    ids = tokens.token_ids[rows].astype(np.int64)
    return Spans(ids, rows, np.cumsum([0, *alive]))


def fit_hmm(
    trial: Spans,
    spans: Spans,
    n_states: int,
    base: NDArray[np.float64],
    *,
    seeds: tuple[int, ...] = SEEDS,
) -> HiddenMarkovModel:
    """Fit a hidden Markov model.

    Args:
        trial: a part of the spans, on which each start is tried.
        spans: the training spans, at least one.
        n_states: number of states.
        base: (d_vocab,) the tokens' unigram, that emissions are smoothed towards.
        seeds: of the starts.

    Returns:
        The model, from the best start.
    """
    tried = [
        _rounds(_start(trial, n_states, base, seed), trial, base, TRIAL_ROUNDS) for seed in seeds
    ]
    best = max(tried, key=lambda one: one[1])[0]
    return _rounds(best, spans, base, MAX_ROUNDS)[0]


def _start(spans: Spans, n_states: int, base: NDArray[np.float64], seed: int) -> HiddenMarkovModel:
    """Give states that each prefer some tokens, by chance."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(spans.token_ids, minlength=len(base))
    shares = rng.gamma(0.5, size=(n_states, len(base)))
    shares /= shares.sum(axis=0)
    seen = shares * counts
    emits = smoothed(seen, seen.sum(axis=1, keepdims=True), base)
    return HiddenMarkovModel(
        rng.dirichlet(np.ones(n_states)),
        rng.dirichlet(np.ones(n_states), size=n_states),
        emits / emits.sum(axis=1, keepdims=True),
    )


def _rounds(
    model: HiddenMarkovModel, spans: Spans, base: NDArray[np.float64], n_rounds: int
) -> tuple[HiddenMarkovModel, float]:
    """Improve a model until it gains too little; give it and its mean log-probability before."""
    n = len(spans.token_ids)
    one_hot = csr_array((np.ones(n), spans.token_ids, np.arange(n + 1)), (n, len(base)))
    before = -np.inf
    for _ in range(n_rounds):
        after, score = _improved(model, spans, base, one_hot)
        if score - before < MIN_GAIN:
            return model, score
        model, before = after, score
    return model, before


def _improved(
    model: HiddenMarkovModel, spans: Spans, base: NDArray[np.float64], one_hot: csr_array
) -> tuple[HiddenMarkovModel, float]:
    """Do one round of expectation maximisation."""
    seen = _seen(model, spans)
    forward, chances = _forward(model, spans, seen)
    n_states = len(model.first)
    backward = np.ones_like(forward)
    moves = np.full((n_states, n_states), PSEUDO_MOVES / n_states)
    for at in range(len(spans.starts) - 2, 0, -1):
        here = slice(*spans.starts[at : at + 2])
        start = spans.starts[at - 1]
        before = slice(start, start + here.stop - here.start)
        told = seen[here] * backward[here] / chances[here, None]  # (n_alive, n_states)
        moves += model.moves * (forward[before].T @ told)
        backward[before] = told @ model.moves.T
    shares = forward * backward  # (n, n_states): P(state | the whole span)
    first = shares[: spans.starts[1]].sum(axis=0) + PSEUDO_MOVES / n_states
    counts = (one_hot.T @ shares).T  # (n_states, d_vocab)
    emits = smoothed(counts, counts.sum(axis=1, keepdims=True), base)
    return HiddenMarkovModel(
        first / first.sum(),
        moves / moves.sum(axis=1, keepdims=True),
        emits / emits.sum(axis=1, keepdims=True),
    ), float(np.log(chances).mean())


def _seen(model: HiddenMarkovModel, spans: Spans) -> NDArray[np.float64]:
    """Give P(token | state) of each token: (n, n_states)."""
    return np.ascontiguousarray(model.emits.T)[spans.token_ids]


def _forward(
    model: HiddenMarkovModel, spans: Spans, seen: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give P(state | span so far), (n, n_states), and P(token | span before it), (n,)."""
    forward, chances = np.empty_like(seen), np.empty(len(seen))
    expected = np.broadcast_to(model.first, (int(spans.starts[1]), len(model.first)))
    for at in range(len(spans.starts) - 1):
        here = slice(*spans.starts[at : at + 2])
        n_alive = here.stop - here.start
        joint = expected[:n_alive] * seen[here]
        chances[here] = joint.sum(axis=1)
        forward[here] = joint / chances[here, None]
        expected = forward[here] @ model.moves
    return forward, chances
