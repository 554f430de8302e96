"""How real an automaton is: what it says about the next token, and how well its steps hold on unseen text.

Inside an automaton's spans the next token is predicted from the state alone. Bits saved are measured against the
spans' own unigram distribution (against the whole text's for a single state, which has no other); the score is
that, times coverage: the share of all tokens that lie in its spans, which is bits a token of the whole text.

On the text that an automaton was counted on, each document is predicted from the steps of the others: what comes
in one document only saves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from circuits.intervals import bits_per_token, documents_of
from circuits.states import Steps, state_sequence, steps_of, transition_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sae_core.schema import TokenTable

SMOOTHING = 0.5  # added to each count of a unigram
PRIOR_STEPS = 50.0  # pseudo-steps of the unigram beside a state's own: half its least support


class Scores(NamedTuple):
    """Scores on the text the automaton was counted on."""

    retention: float
    """P(some state next | some state now): the share of steps that stay inside."""

    retention_lift: float
    """Retention over coverage: how much likelier than for any token."""

    bits_saved: float
    """Bits a step that the state saves in predicting the next token."""

    coverage: float
    """Share of tokens on which some state is current."""

    bits_per_token: float | None = None
    """Bits saved x coverage, each document predicted from the others; None for a single document."""

    bits_per_token_low: float | None = None
    """Lower end of its 95 % interval over documents."""

    bits_per_token_high: float | None = None
    """Upper end."""


HELD_OUT = (
    "held_out_retention",
    "held_out_bits_saved",
    "held_out_coverage",
    "held_out_steps_explained",
    "held_out_bits_per_token",
    "held_out_bits_per_token_low",
    "held_out_bits_per_token_high",
)


def training_scores(
    tokens: TokenTable, sequence: NDArray[np.int32], steps: Steps, n_states: int
) -> Scores:
    """Score an automaton on its own text.

    Args:
        tokens: the training text.
        sequence: (n_tokens,) state of each token, -1 outside.
        steps: its steps.
        n_states: number of states.
    """
    matrix = transition_matrix(steps, n_states)
    retention = float(matrix[:, :-1].sum() / max(1, matrix.sum()))
    coverage = float((sequence >= 0).mean())
    prior = unigram(tokens, steps, n_states)
    bits = float(np.mean(_bits_saved(steps, steps, n_states, prior)))
    lift = retention / coverage if coverage > 0 else 0.0
    others = _bits_from_others(tokens, steps, n_states, prior)
    per_token = bits_per_token(tokens, sequence, steps, others)
    of_several = per_token if per_token.low is not None else (None, None, None)
    return Scores(retention, lift, bits, coverage, *of_several)


def held_out_scores(
    groups: Sequence[Sequence[int]],
    steps: Steps,
    mean_act: NDArray[np.float64],
    held_out: TokenTable | None,
) -> dict[str, float | None]:
    """Score an automaton on text it was not made from.

    Args:
        groups: the features of each state.
        steps: its steps on training text, from which probabilities are taken.
        mean_act: (d_sae,) mean activation of each feature.
        held_out: unseen text; None or empty gives "not measured".

    Returns:
        The scores named in HELD_OUT; None where not measured.
    """
    if held_out is None or len(held_out.token_ids) == 0:
        return dict.fromkeys(HELD_OUT)
    sequence = state_sequence(held_out, groups, mean_act)
    unseen = steps_of(held_out, sequence)
    if len(unseen.rows) == 0:
        return dict.fromkeys(HELD_OUT) | {"held_out_coverage": 0.0}
    matrix = transition_matrix(unseen, len(groups))
    bits = _bits_saved(steps, unseen, len(groups), unigram(held_out, steps, len(groups)))
    values = (
        float(matrix[:, :-1].sum() / matrix.sum()),
        float(np.mean(bits)),
        float((sequence >= 0).mean()),
        _explained(steps, unseen),
        *bits_per_token(held_out, sequence, unseen, bits),
    )
    return dict(zip(HELD_OUT, values, strict=True))


def smoothed(
    n_seen: NDArray[np.float64 | np.int64], n_steps: Any, base: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give P(token | state): the state's own steps, and PRIOR_STEPS more that fall as the unigram.

    Args:
        n_seen: (n,) steps from the state on each token.
        n_steps: all steps from the state, one number or (n,).
        base: (n,) unigram probability of each token.
    """
    chance: NDArray[np.float64] = (n_seen + PRIOR_STEPS * base) / (n_steps + PRIOR_STEPS)
    return chance


def unigram(tokens: TokenTable, steps: Steps, n_states: int) -> NDArray[np.float64]:
    """Give the unigram that states must beat: the spans', or for one state the whole text's.

    Args:
        tokens: a text.
        steps: the steps that are counted.
        n_states: number of states.

    Returns:
        (n_ids,) smoothed probability of each token, up to the highest id that occurs.
    """
    base = steps.token if n_states > 1 else tokens.token_ids
    size = 1 + max(int(tokens.token_ids.max(initial=0)), int(steps.token.max(initial=0)))
    counts = np.bincount(base, minlength=size) + SMOOTHING
    prior: NDArray[np.float64] = counts / counts.sum()
    return prior


def next_token_chances(
    counted: Steps, scored: Steps, n_states: int, prior: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give what states say of the tokens that came: P(next token | state), counted on other steps.

    Args:
        counted: the steps that probabilities are taken from, at least one.
        scored: n steps to predict.
        n_states: number of states; any machine's, such as clusters.
        prior: (n_ids,) as of `unigram`; a token beyond it counts as its rarest.

    Returns:
        (n,) smoothed probability of each scored step's token, and (n,) that of the prior.
    """
    size = max(
        len(prior), 1 + int(scored.token.max(initial=0)), 1 + int(counted.token.max(initial=0))
    )
    base = np.full(size, prior.min())
    base[: len(prior)] = prior
    keys, counts = np.unique(_key(counted, size), return_counts=True)
    totals = np.bincount(counted.source, minlength=n_states)
    wanted = _key(scored, size)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    seen = np.where(keys[at] == wanted, counts[at], 0)
    own = base[scored.token]
    return smoothed(seen, totals[scored.source], own), own


def _bits_saved(
    counted: Steps, scored: Steps, n_states: int, prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) bits that each of the n scored steps saves, by the counts of other steps."""
    chance, base = next_token_chances(counted, scored, n_states, prior)
    bits: NDArray[np.float64] = np.log2(chance) - np.log2(base)
    return bits


def _bits_from_others(
    tokens: TokenTable, steps: Steps, n_states: int, prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) bits that each step saves, by the counts of the steps in all other documents."""
    document, key = documents_of(tokens)[steps.rows], _key(steps, len(prior))
    source, token = steps.source.astype(np.int64), steps.token.astype(np.int64)
    n_seen = _n_alike(key) - _n_alike(document * (n_states * len(prior)) + key)
    n_steps = _n_alike(source) - _n_alike(document * n_states + source)
    base = prior[token]
    if n_states > 1:  # the spans' unigram is of the others too; the whole text's hardly differs
        n_token = _n_alike(token) - _n_alike(document * len(prior) + token)
        n_others = len(token) - _n_alike(document)
        base = (n_token + SMOOTHING) / (n_others + SMOOTHING * len(prior))
    bits: NDArray[np.float64] = np.log2(smoothed(n_seen, n_steps, base)) - np.log2(base)
    return bits


def _n_alike(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how often each of n keys is among them."""
    _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[place]


def _key(steps: Steps, size: int) -> NDArray[np.int64]:
    return steps.source.astype(np.int64) * size + steps.token


def _explained(steps: Steps, unseen: Steps) -> float | None:
    """Give the share of unseen member-to-member steps whose (source, token, target) was counted.

    None where there is no such step: nothing was asked, so nothing failed.
    """
    size = 1 + max(int(steps.token.max(initial=0)), int(unseen.token.max(initial=0)))
    width = 1 + max(int(steps.target.max(initial=0)), int(unseen.target.max(initial=0)))

    def triple(of: Steps) -> NDArray[np.int64]:
        inside = of.target >= 0
        return (_key(of, size) * width + of.target)[inside]

    wanted = triple(unseen)
    return float(np.isin(wanted, triple(steps)).mean()) if len(wanted) else None
