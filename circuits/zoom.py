"""Zoom: a stored automaton -> the same one with fewer states.

1. Each state's outcomes, (next token, next state or EXIT), are read off its stored arrows; tokens
   that an arrow does not list are one more token.
2. States are merged two at a time, each time the pair that loses least of
   I(state; next token, next state).
3. Arrows between the same two groups become one: pairs add up, token shares are weighted by pairs,
   and probabilities and labels are made again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Literal

import numpy as np

from circuits.arrivals import arrivals, visits
from circuits.automaton import EXIT, EdgeToken, State, Transition
from circuits.states import Merge, merge_order, merged_groups
from circuits.summarise import summarise
from sae_core.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from circuits.automaton import Example, FeatureAutomaton

DRAWN_STATES = 8  # what a person reads in one picture, where no other number is asked for
MERGED_STATES = 400  # more are not merged unasked: it may take over a second
MAX_WORK = 10**10  # states squared x outcomes, about a minute; what is found takes a thousandth
REST = -1  # stands for the tokens that an arrow does not list


def zoom(automaton: FeatureAutomaton, n_states: int) -> FeatureAutomaton:
    """Merge states until `n_states` are left.

    Args:
        automaton: as stored.
        n_states: states to leave, 1 to as many as are stored.

    Returns:
        The automaton with fewer states. A merged state keeps the lowest id of its members; name,
        title, kind and scores stay those of the stored automaton. Asked for all its states, the
        automaton itself.

    Raises:
        ValueError: n_states is below 1.
        GraphError: the automaton has fewer states than that, or is too large to be merged.
    """
    stored = len(automaton.states)
    if n_states < 1:
        raise ValueError(f"n_states must be >= 1, got {n_states}")
    if n_states > stored:
        raise GraphError(
            f"automaton {automaton.name} is stored with {stored} states, so it cannot be drawn "
            f"with {n_states}; choose 1 to {stored}"
        )
    if n_states == stored:
        return automaton
    rows = [(at,) for at in range(stored)]
    parts = merged_groups(rows, _merges(automaton), n_states)
    groups = [[automaton.states[at] for at in sorted(part)] for part in parts]
    home = {state.id: min(one.id for one in group) for group in groups for state in group}
    return replace(
        automaton,
        states=_states(automaton, groups),
        transitions=_transitions(automaton, home),
        provenance=automaton.provenance | {"zoomed_from": stored},
    )


def drawn(automaton: FeatureAutomaton, n_states: int | None = None) -> FeatureAutomaton:
    """Give an automaton as pictures show it: of many states, the most alike are merged.

    Args:
        automaton: as stored.
        n_states: states at most; None takes `DRAWN_STATES`, and leaves more than `MERGED_STATES` as
            they are, of which `circuits.cards.plan` takes the strongest.

    Raises:
        GraphError: the automaton is too large for its states to be merged.
    """
    stored = len(automaton.states)
    most = DRAWN_STATES if n_states is None else n_states
    if stored <= most or (n_states is None and stored > MERGED_STATES):
        return automaton
    return zoom(automaton, most)


def merge_tree(automaton: FeatureAutomaton) -> tuple[Merge, ...]:
    """Give all merges that zooming out does, in their order, and what each costs.

    Args:
        automaton: as stored.

    Returns:
        n_states - 1 merges, by state ids: state `b` joins `a` < `b`, which is what the two are
        called from then on. The costs of the first k add up to what `zoom(n_states - k)` loses of
        I(state; next token, next state), in bits a step.

    Raises:
        GraphError: the automaton is too large to be merged.

    Example:
        >>> from circuits.automaton import EdgeToken, FeatureAutomaton, State, Transition
        >>> end = tuple(EdgeToken(at, "ab"[at], 1.0) for at in (0, 1))
        >>> steps = [Transition(at, "EXIT", 1.0, (end[at > 0],), "", 50) for at in (0, 1, 2)]
        >>> states = [State(at, "", (at,)) for at in (0, 1, 2)]
        >>> automaton = FeatureAutomaton("a", "a", "chain", {}, tuple(states), tuple(steps))
        >>> for merge in merge_tree(automaton):
        ...     print(f"{merge.b} joins {merge.a} for {merge.loss_bits:.3f} bits")
        2 joins 1 for 0.000 bits
        1 joins 0 for 0.918 bits
    """
    name = [state.id for state in automaton.states]
    found = []
    for merge in _merges(automaton):
        low, high = sorted((name[merge.a], name[merge.b]))
        found.append(Merge(low, high, merge.loss_bits))
        name[merge.a] = low
    return tuple(found)


def _merges(automaton: FeatureAutomaton) -> list[Merge]:
    """Give all merges in their order, by the places of states; refuse what would take minutes."""
    n_states = len(automaton.states)
    n_targets = len({step.target for step in automaton.transitions})
    if n_states**2 * n_targets > MAX_WORK:
        raise GraphError(
            f"automaton {automaton.name} has {n_states:,} states and {n_targets:,} targets, too many to "
            "merge; draw it without --states"
        )
    return merge_order(outcome_counts(automaton))


def outcome_counts(automaton: FeatureAutomaton) -> NDArray[np.int64]:
    """Count each state's outcomes, as far as its arrows tell.

    Args:
        automaton: a stored automaton.

    Returns:
        (n_states, n_outcomes) pairs; rows in the order of the states, an outcome being
        (target, token).
    """
    row_of = {state.id: row for row, state in enumerate(automaton.states)}
    columns: dict[tuple[int | str, int], int] = {}
    cells: Counter[tuple[int, int]] = Counter()
    for step in automaton.transitions:
        for token_id, n_pairs in _pairs_by_token(step).items():
            column = columns.setdefault((step.target, token_id), len(columns))
            cells[row_of[step.source], column] += n_pairs
    counts = np.zeros((len(row_of), max(1, len(columns))), dtype=np.int64)
    for place, n_pairs in cells.items():
        counts[place] = n_pairs
    return counts


def _pairs_by_token(step: Transition) -> dict[int, int]:
    pairs = {token.token_id: round(step.n_pairs * token.share) for token in step.tokens}
    return pairs | {REST: max(0, step.n_pairs - sum(pairs.values()))}


def _states(automaton: FeatureAutomaton, groups: Sequence[Sequence[State]]) -> tuple[State, ...]:
    reached, seen = arrivals(automaton), visits(automaton)
    found = []
    for group in groups:
        busiest = sorted(group, key=lambda state: (-seen[state.id], state.id))
        mass: dict[str, float] = defaultdict(float)
        for state in group:
            for text, pairs in reached[state.id].items():
                mass[text] += pairs
        found.append(group[0] if len(group) == 1 else _joined(busiest, mass))
    return tuple(sorted(found, key=lambda state: state.id))


def _joined(busiest: Sequence[State], reached: dict[str, float]) -> State:
    total = sum(reached.values())
    ordered = sorted(reached.items(), key=lambda pair: (-pair[1], pair[0]))
    label = summarise([(text, pairs / total) for text, pairs in ordered])
    return State(
        id=min(state.id for state in busiest),
        label=label or "  ".join(dict.fromkeys(state.label for state in busiest)),
        features=tuple(dict.fromkeys(chain.from_iterable(state.features for state in busiest))),
        examples=_examples(busiest),
    )


def _examples(busiest: Sequence[State]) -> tuple[Example, ...]:
    """Keep as many examples as one state has, the members taking turns, the busiest first."""
    turns = zip_longest(*(state.examples for state in busiest))
    kept = [example for turn in turns for example in turn if example is not None]
    return tuple(kept[: max(len(state.examples) for state in busiest)])


def _transitions(automaton: FeatureAutomaton, home: dict[int, int]) -> tuple[Transition, ...]:
    members = Counter(home.values())
    totals = visits(automaton)
    of_group: Counter[int] = Counter()
    for state_id, pairs in totals.items():
        of_group[home[state_id]] += pairs
    parts: dict[tuple[int, int | Literal["EXIT"]], list[Transition]] = defaultdict(list)
    for step in automaton.transitions:
        target = home[step.target] if isinstance(step.target, int) else EXIT
        parts[home[step.source], target].append(step)
    order = sorted(parts, key=lambda key: (key[0], key[1] == EXIT, str(key[1]).zfill(9)))
    found = []
    for source, target in order:
        steps = parts[source, target]
        n_pairs = sum(step.n_pairs for step in steps)
        chance = (
            n_pairs / of_group[source]
            if of_group[source]
            else sum(step.probability for step in steps) / members[source]
        )
        found.append(_merged(steps, source, target, chance))
    return tuple(found)


def _merged(
    steps: Sequence[Transition], source: int, target: int | Literal["EXIT"], chance: float
) -> Transition:
    if len(steps) == 1:
        return replace(steps[0], source=source, target=target, probability=chance)
    n_pairs = sum(step.n_pairs for step in steps)
    tokens = _tokens(steps)
    label = summarise([(token.token_str, token.share) for token in tokens])
    effects = [step.causal * step.n_pairs for step in steps if step.causal is not None]
    measured = len(effects) == len(steps) and n_pairs > 0
    return Transition(
        source=source,
        target=target,
        probability=chance,
        tokens=tokens,
        label=label or "  ".join(dict.fromkeys(step.label for step in steps if step.label)),
        n_pairs=n_pairs,
        causal=sum(effects) / n_pairs if measured else None,
    )


def _tokens(steps: Sequence[Transition]) -> tuple[EdgeToken, ...]:
    total = sum(step.n_pairs for step in steps)
    weight = {id(step): step.n_pairs / total if total else 1 / len(steps) for step in steps}
    shares: dict[tuple[int, str], float] = {}
    for step in steps:
        for token in step.tokens:
            key = (token.token_id, token.token_str)
            shares[key] = shares.get(key, 0.0) + weight[id(step)] * token.share
    order = sorted(shares, key=lambda key: (-shares[key], key))
    return tuple(EdgeToken(*key, min(1.0, shares[key])) for key in order)
