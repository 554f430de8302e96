"""A set of features -> an automaton: states, labelled transitions, examples and scores.

1. The set is shaped into states (`shape`), on part of the training text.
2. Steps of the states are counted on all of it; every row, EXIT included, sums to 1.
3. The same states are run over held-out text for the scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.automaton import (
    EXIT,
    EdgeToken,
    Example,
    FeatureAutomaton,
    State,
    Transition,
    Variant,
)
from circuits.fidelity import Scores, held_out_scores, training_scores
from circuits.intervals import n_documents
from circuits.naming import slug_of, title_of
from circuits.shape import MIN_STATE_STEPS, Text, shape
from circuits.states import has_next, state_sequence, steps_of, transition_matrix
from circuits.summarise import summarise
from circuits.zoom import DRAWN_STATES, zoom

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from circuits.propose import Proposal
    from circuits.states import Steps
    from sae_core.schema import TokenTable

MIN_STEPS = 200  # a row of probabilities counted on fewer steps is off by more than 0.03
MIN_RETENTION_LIFT = 1.5  # a set that is left about as often as any tokens are is no automaton
MIN_DOCUMENTS = 20  # with fewer, an automaton of one page in ten may well be in a single one
MIN_APART = 0.4  # bits of one; a single state whose next tokens are more like the rest's is a topic
MAX_TOKENS = 20  # tokens kept on a transition
N_EXAMPLES = 3
BEFORE, AFTER = 5, 3  # tokens of an example around the one that fires


@dataclass(frozen=True)
class Draft:
    """An automaton before it has a name: its groups of features and how they ran on training text."""

    kind: str
    groups: tuple[tuple[int, ...], ...]
    sequence: NDArray[np.int32]
    """(n_tokens,) state of each training token, -1 outside."""

    steps: Steps
    scores: Scores
    variants: tuple[Variant, ...] = ()
    """Near-duplicates that were folded into it, best first."""

    @property
    def features(self) -> frozenset[int]:
        """All features of the automaton."""
        return frozenset(feature for group in self.groups for feature in group)


def draft_of(proposal: Proposal, text: Text, sample: Text) -> Draft | None:
    """Turn a set of features into states.

    Args:
        proposal: the set and how it was found.
        text: training text, on which the steps are counted.
        sample: part of it, on which the states are shaped.

    Returns:
        The states and how they ran; None when the set does not run as an automaton.
    """
    groups = shape(proposal, sample)
    if not groups:
        return None
    sequence = state_sequence(text.tokens, groups, text.mean_act)
    steps = steps_of(text.tokens, sequence)
    kind = _kind_of(transition_matrix(steps, len(groups)), len(groups), proposal.kind)
    if len(steps.rows) < MIN_STEPS or kind is None:
        return None
    scores = training_scores(text.tokens, sequence, steps, len(groups))
    if scores.retention_lift < MIN_RETENTION_LIFT or not is_supported(scores, text.tokens):
        return None
    if kind == "loop" and apart(text.tokens, sequence) < MIN_APART:
        return None
    return Draft(kind, tuple(groups), sequence, steps, scores)


def is_supported(scores: Scores, tokens: TokenTable) -> bool:
    """Say whether a text shows that an automaton saves bits on documents that it was not counted on.

    Args:
        scores: on its training text.
        tokens: that text. With fewer than MIN_DOCUMENTS documents it cannot show that, and all pass.

    Returns:
        False where the interval of bits per token includes 0.
    """
    low = scores.bits_per_token_low
    return low is None or low > 0 or n_documents(tokens) < MIN_DOCUMENTS


def automaton_of(
    draft: Draft,
    text: Text,
    held_out: TokenTable | None,
    provenance: Mapping[str, Any],
) -> FeatureAutomaton:
    """Name, label and score a draft.

    Args:
        draft: the states.
        text: the training text it was drafted on.
        held_out: text to score it on; None when the run has none.
        provenance: what it was made from.

    Returns:
        The automaton; its name is not yet unique.
    """
    held = held_out_scores(draft.groups, draft.steps, text.mean_act, held_out)
    whole = FeatureAutomaton(
        name="",
        title="",
        kind=draft.kind,
        scores=draft.scores._asdict() | held,
        states=_states(draft, text),
        transitions=_transitions(draft, text.token_strs),
        provenance=dict(provenance),
        variants=draft.variants,
    )
    drawn = zoom(whole, min(len(whole.states), DRAWN_STATES))
    return replace(
        whole,
        name=slug_of(draft.kind, drawn.states, drawn.transitions),
        title=title_of(draft.kind, drawn.states, drawn.transitions),
    )


def apart(tokens: TokenTable, sequence: NDArray[np.int32]) -> float:
    """Give how well the next token tells whether it comes from inside or outside, both as likely.

    Unlike bits saved over the whole text, it does not fall where an automaton covers much of it.

    Args:
        tokens: n tokens in text order.
        sequence: (n,) state of each, -1 outside.

    Returns:
        Jensen-Shannon divergence of the tokens that follow, in bits; 0 alike, 1 none in common.
    """
    rows = np.flatnonzero(has_next(tokens))
    inside = (sequence[rows] >= 0).astype(np.int64)
    following = tokens.token_ids[rows + 1].astype(np.int64)
    n_kinds = 1 + int(following.max(initial=0))
    counts = np.bincount(inside * n_kinds + following, minlength=2 * n_kinds)
    table = counts.reshape(2, -1)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    ratio = np.divide(shares, shares.mean(axis=0), out=np.ones_like(shares), where=shares > 0)
    return float((shares * np.log2(ratio)).sum() / 2)


def _kind_of(counts: NDArray[np.int64], n_states: int, found_as: str) -> str | None:
    if n_states == 1:
        stays = counts[0, 0] / max(1, counts[0].sum())
        return "loop" if stays >= 0.3 else None
    if n_states == 2:
        return "pair" if min(counts[0, 1], counts[1, 0]) >= MIN_STATE_STEPS else None
    return "chain" if found_as == "chain" else "system"


def _transitions(draft: Draft, token_strs: list[str]) -> tuple[Transition, ...]:
    steps, n_states = draft.steps, len(draft.groups)
    matrix = transition_matrix(steps, n_states)
    totals = matrix.sum(axis=1)
    found: list[Transition] = []
    for source, column in np.argwhere(matrix > 0).tolist():
        target = column if column < n_states else -1
        chosen = steps.token[(steps.source == source) & (steps.target == target)]
        tokens = _edge_tokens(chosen, token_strs)
        found.append(
            Transition(
                source=source,
                target=target if target >= 0 else EXIT,
                probability=float(matrix[source, column] / totals[source]),
                tokens=tokens[:MAX_TOKENS],
                label=summarise([(token.token_str, token.share) for token in tokens]),
                n_pairs=int(matrix[source, column]),
            )
        )
    return tuple(found)


def _edge_tokens(chosen: NDArray[np.int32], token_strs: list[str]) -> tuple[EdgeToken, ...]:
    ids, counts = np.unique(chosen, return_counts=True)
    order = np.lexsort((ids, -counts))
    return tuple(
        EdgeToken(int(ids[at]), token_strs[ids[at]], float(counts[at] / len(chosen)))
        for at in order
    )


def _states(draft: Draft, text: Text) -> tuple[State, ...]:
    states = []
    for state, features in enumerate(draft.groups):
        rows = np.flatnonzero(draft.sequence == state)
        tokens = _edge_tokens(text.tokens.token_ids[rows].astype(np.int32), text.token_strs)
        label = summarise([(token.token_str, token.share) for token in tokens])
        examples = _examples(rows, text, set(features), [token.token_id for token in tokens])
        states.append(State(state, label, _by_use(features, rows, text), examples))
    return tuple(states)


def _by_use(features: Sequence[int], rows: NDArray[np.int64], text: Text) -> tuple[int, ...]:
    """Order a state's features by how often they fire while it is current."""
    tokens = text.tokens
    entries = np.concatenate(
        [tokens.features[tokens.indptr[row] : tokens.indptr[row + 1]] for row in rows[:5000]]
    )
    used = {feature: int((entries == feature).sum()) for feature in features}
    return tuple(sorted(features, key=lambda feature: (-used[feature], feature)))


def _examples(
    rows: NDArray[np.int64], text: Text, features: set[int], token_ids: Sequence[int]
) -> tuple[Example, ...]:
    """Take a snippet for each of a state's commonest tokens, at even distances through the text.

    Args:
        rows: where the state is current.
        text: to take them from.
        features: of the state.
        token_ids: on which it is current, the commonest first.
    """
    if not token_ids:
        return ()
    at_rows = text.tokens.token_ids[rows]
    picks: list[int] = []
    for n_before in range(N_EXAMPLES):  # with fewer tokens than examples, they take turns
        wanted = token_ids[n_before % min(N_EXAMPLES, len(token_ids))]
        places = rows[at_rows == wanted]
        picks.append(int(places[(n_before + 1) * (len(places) - 1) // (N_EXAMPLES + 1)]))
    return tuple(_example(row, text, features) for row in dict.fromkeys(picks))


def _example(row: int, text: Text, features: set[int]) -> Example:
    tokens = text.tokens
    same = np.flatnonzero(
        tokens.doc_ids[max(0, row - BEFORE) : row + AFTER + 1] == tokens.doc_ids[row]
    )
    span = max(0, row - BEFORE) + same
    values = np.array([_activation(int(at), text, features) for at in span])
    top = max(float(values.max()), 1e-9)
    return Example(
        tokens=tuple(text.token_strs[tokens.token_ids[at]] for at in span),
        values=tuple(round(float(value) / top, 3) for value in values),
        focus=int(np.flatnonzero(span == row)[0]),
    )


def _activation(row: int, text: Text, features: set[int]) -> float:
    tokens = text.tokens
    total = 0.0
    for at in range(tokens.indptr[row], tokens.indptr[row + 1]):
        feature = int(tokens.features[at])
        if feature in features and text.mean_act[feature] > 0:
            total += float(tokens.acts[at]) / float(text.mean_act[feature])
    return total
