"""What is drawn of an automaton, decided before anything is laid out: cards, arrows, words.

1. The strongest states and arrows are kept; an arrow below `MIN_PROBABILITY` stays only where its
   state would otherwise be cut off. What is hidden is counted and said.
2. A state becomes a card: its label, its features, how often it leaves the automaton, and real
   examples, one a line, with the firing tokens in one column.
3. Text is measured by `lettering`, so that boxes have the same size on every machine.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from circuits.automaton import EXIT
from circuits.lettering import (
    MONO_EM,
    cut_cells,
    cut_width,
    n_cells,
    percent,
    shown_label,
    shown_token,
    text_width,
)
from circuits.score_words import HELD_OUT, score_words
from sae_core.tokens import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from circuits.automaton import Example, FeatureAutomaton, State, Transition, Variant

MIN_PROBABILITY = 0.05  # below, an arrow is noise beside the others of its state
MAX_STATES = 40  # a card stays legible on one screen; more are for the tables
ARROWS_PER_STATE = 2  # more hide each other; a small picture has one
MIN_ARROWS = 4  # so many of a pair are drawn even when small
N_EXAMPLES = 3
N_SCORES = 8
ASKED_FOR = ("stability", "causal_agreement")  # scores that are measured on request
GAP = "\u2003"  # between scores
FULL_CARDS = 12  # with more states than this a card shows one example

TOKEN_SIZE = 10.5
TITLE_SIZE = 13.0
SMALL_SIZE = 9.5
LABEL_SIZE = 10.5
LINE_HEIGHT = 17.0
PADDING = 11.0
HEAD_HEIGHT = 43.0
BARE_HEIGHT = 34.0
LEAST_FULL, LEAST_BARE = 160.0, 90.0  # a card's inner width, with and without examples
MOST_TITLE = 190.0
LEFT_CELLS = 13.0  # characters shown before the firing token
RIGHT_CELLS = 21.0  # characters shown from the firing token on
LABEL_CELLS = 24.0
VARIANT_WIDTH = 320.0
SHADE_FROM = 0.03  # a smaller share of the largest activation is drawn as none


class Piece(NamedTuple):
    """One token of an example line."""

    text: str
    column: float
    """Where it starts, in characters from the left of the line."""

    cells: float
    """Its width in characters."""

    value: float
    """Activation as a share of the largest, in [0, 1]."""

    is_focus: bool


class Card(NamedTuple):
    """One state as it is drawn."""

    state_id: int
    order: int
    """Place among all states of the automaton; it chooses the colour."""

    title: str
    features: str
    leaves: str
    lines: tuple[tuple[Piece, ...], ...]


class Arrow(NamedTuple):
    """All transitions from one state to another, as one arrow."""

    source: int
    target: int
    probability: float
    tokens: str
    percent: str


class Drawing(NamedTuple):
    """All that is drawn of one automaton; cards share one size, in CSS pixels."""

    name: str
    title: str
    kind: str
    """What it is, and of how many states."""

    cards: tuple[Card, ...]
    arrows: tuple[Arrow, ...]
    card_width: float
    card_height: float
    scores: tuple[str, ...]
    """Scores with their numbers."""

    hidden: tuple[str, ...]
    """Sentences that count what is not drawn, where there is something."""

    description: str


def state_count(automaton: FeatureAutomaton) -> str:
    """Say how many states an automaton has, and of how many as stored they are merged."""
    n_states, stored = len(automaton.states), _stored(automaton)
    of = "" if stored == n_states else f" of {stored:,}"
    return f"{n_states:,}{of} state{'s' if stored > 1 else ''}"


def plan(automaton: FeatureAutomaton, *, detail: bool = True) -> Drawing:
    """Decide what is drawn of an automaton.

    Args:
        automaton: states and transitions.
        detail: with examples, arrow words and footer; without them, a thumbnail.

    Returns:
        Cards in the order of the states, arrows the most probable first.
    """
    states = strongest_states(automaton, MAX_STATES)
    arrows = _arrows(automaton, {state.id for state in states}, detail=detail)
    most = max(MIN_ARROWS, (ARROWS_PER_STATE if detail else 1) * len(states))
    kept = _kept_arrows(arrows, [state.id for state in states], most=most)
    n_examples = (N_EXAMPLES if len(states) <= FULL_CARDS else 1) if detail else 0
    shown, width = _cards(automaton, states, n_examples)
    n_lines = max(len(card.lines) for card in shown)
    height = HEAD_HEIGHT + n_lines * LINE_HEIGHT + (5.0 if n_lines else 0.0)
    steps = {(step.source, step.target) for step in automaton.transitions if step.target != EXIT}
    hidden = _hidden(automaton, len(states), len(steps) - len(kept))
    return Drawing(
        name=automaton.name,
        title=visible(automaton.title),
        kind=f"{automaton.kind} · {state_count(automaton)}",
        cards=shown,
        arrows=kept,
        card_width=width,
        card_height=height if detail else BARE_HEIGHT,
        scores=_scores(automaton) if detail else (),
        hidden=hidden if detail else (),
        description=_description(automaton, shown, kept),
    )


def variant_words(variants: Sequence[Variant]) -> str:
    """Say in a line what was folded into an automaton: how many, and the best of them."""
    best = variants[0]
    features = _feature_words(best.features, VARIANT_WIDTH)
    several = "s" if len(variants) > 1 else ""
    return (
        f"Folded into this: {len(variants)} near-duplicate{several}; the best, {features}, saves "
        f"{best.bits_saved:.3g} bits a step in {percent(best.coverage)} of the text."
    )


def strongest_states(automaton: FeatureAutomaton, most: int) -> list[State]:
    """Give the `most` states with the most counted pairs, in their own order."""
    flow: dict[int, int] = defaultdict(int)
    for step in automaton.transitions:
        flow[step.source] += step.n_pairs
        if step.target != EXIT:
            flow[step.target] += step.n_pairs
    ranked = sorted(automaton.states, key=lambda state: (-flow[state.id], state.id))
    kept = {state.id for state in ranked[:most]}
    return [state for state in automaton.states if state.id in kept]


def _arrows(automaton: FeatureAutomaton, states: set[int], *, detail: bool) -> list[Arrow]:
    """Join the transitions of each pair of states, the most probable pair first."""
    joined: dict[tuple[int, int], list[Transition]] = defaultdict(list)
    for step in automaton.transitions:
        if step.target != EXIT and step.source in states and step.target in states:
            joined[step.source, step.target].append(step)
    arrows = []
    for (source, target), steps in joined.items():
        steps.sort(key=lambda step: (-step.probability, step.label))
        total = sum(step.probability for step in steps)
        labels = [shown_label(step.label) for step in steps if step.label]
        words = cut_cells(" · ".join(dict.fromkeys(labels)), LABEL_CELLS) if detail else ""
        arrows.append(Arrow(source, target, total, words, percent(total) if detail else ""))
    return sorted(arrows, key=lambda arrow: (-arrow.probability, arrow.source, arrow.target))


def _kept_arrows(arrows: list[Arrow], states: list[int], *, most: int) -> tuple[Arrow, ...]:
    """Keep the `most` strongest arrows, and weak ones that join two parts of the picture."""
    part = {state: state for state in states}

    def root(state: int) -> int:
        while part[state] != state:
            part[state] = part[part[state]]
            state = part[state]
        return state

    kept: list[Arrow] = []
    for arrow in arrows:
        a, b = root(arrow.source), root(arrow.target)
        strong = arrow.probability >= MIN_PROBABILITY and len(kept) < most
        if strong or a != b:
            kept.append(arrow)
        part[a] = b
    return tuple(kept)


def _window(examples: Iterable[Example]) -> tuple[float, float]:
    """Give the characters needed left of, and from, the firing token over all examples."""
    left = right = 0.0
    for example in examples:
        cells = [n_cells(shown_token(token)) for token in example.tokens]
        left = max(left, min(sum(cells[: example.focus]), LEFT_CELLS))
        right = max(right, min(sum(cells[example.focus :]), RIGHT_CELLS))
    return left, right


def _title_width(states: list[State], n_examples: int) -> float:
    least = LEAST_FULL if n_examples else LEAST_BARE
    widest = max(text_width(visible(state.label), TITLE_SIZE, bold=True) for state in states)
    return min(max(widest, least), MOST_TITLE)


def _cards(
    automaton: FeatureAutomaton, states: list[State], n_examples: int
) -> tuple[tuple[Card, ...], float]:
    """Give the cards and the one width they share, in pixels."""
    window = _window(example for state in states for example in state.examples[:n_examples])
    inner = max(sum(window) * MONO_EM * TOKEN_SIZE, _title_width(states, n_examples))
    width = round(inner + 2 * PADDING, 1)
    order = {state.id: at for at, state in enumerate(automaton.states)}
    shown = (
        _card(
            automaton,
            state,
            order=order[state.id],
            n_examples=n_examples,
            window=window,
            width=width,
        )
        for state in states
    )
    return tuple(shown), width


def _card(
    automaton: FeatureAutomaton,
    state: State,
    *,
    order: int,
    n_examples: int,
    window: tuple[float, float],
    width: float,
) -> Card:
    inner = width - 2 * PADDING
    leaves = automaton.exit_probability(state.id)
    note = f"leaves {percent(leaves)}" if leaves >= 0.005 else ""
    room = inner - text_width(note, SMALL_SIZE) - 8
    return Card(
        state.id,
        order,
        cut_width(shown_label(state.label), inner, TITLE_SIZE, bold=True),
        _feature_words(state.features, room),
        note,
        tuple(_line(example, window) for example in state.examples[:n_examples]),
    )


def _feature_words(features: tuple[int, ...], room: float) -> str:
    """Write features as `F12 · F408 +3`, as many as fit into `room` pixels."""
    for n_shown in range(len(features), 0, -1):
        rest = f" +{len(features) - n_shown}" if n_shown < len(features) else ""
        words = " · ".join(f"F{feature}" for feature in features[:n_shown]) + rest
        if n_shown == 1 or text_width(words, SMALL_SIZE) <= room:
            return words
    return ""


def _line(example: Example, window: tuple[float, float]) -> tuple[Piece, ...]:
    """Lay an example's tokens on a line, the firing token at column `window[0]`."""
    left, right = window
    pieces = []
    column = left
    for at in range(example.focus - 1, -1, -1):
        text = cut_cells(shown_token(example.tokens[at]), column, keep_end=True)
        if column < 1:
            break
        column -= n_cells(text)
        pieces.append(Piece(text, column, n_cells(text), example.values[at], is_focus=False))
    pieces.reverse()
    column = left
    for at in range(example.focus, len(example.tokens)):
        room = left + right - column
        if room < 1:
            break
        text = cut_cells(shown_token(example.tokens[at]), room)
        is_focus = at == example.focus
        pieces.append(Piece(text, column, n_cells(text), example.values[at], is_focus))
        column += n_cells(text)
    return tuple(pieces)


def _scores(automaton: FeatureAutomaton) -> tuple[str, ...]:
    """Write the scores on unseen text and what was asked for; all, where those were not measured."""
    scores = automaton.scores
    told = {
        key: value
        for key, value in scores.items()
        if key.startswith(HELD_OUT) or (key in ASKED_FOR and value is not None)
    }
    is_measured = any(told[key] is not None for key in told if key.startswith(HELD_OUT))
    pairs = score_words(told if is_measured else scores)
    return tuple(f"{words} {number}" for words, number in pairs[:N_SCORES])


def _stored(automaton: FeatureAutomaton) -> int:
    """Count the states that an automaton has as stored, before a zoom."""
    stored = automaton.provenance.get("zoomed_from")
    return stored if isinstance(stored, int) else len(automaton.states)


def _hidden(automaton: FeatureAutomaton, n_drawn: int, n_arrows: int) -> tuple[str, ...]:
    notes = []
    n_states, stored = len(automaton.states), _stored(automaton)
    if n_states < stored:
        more = f"{stored} draws all" if stored <= MAX_STATES else f"{MAX_STATES} draws more"
        notes.append(f"{n_states} of {stored:,} states, the most alike merged; --states {more}")
    if n_drawn < n_states:
        notes.append(f"the {n_drawn} strongest of {n_states:,} states are drawn")
    if n_arrows:
        notes.append(f"{n_arrows:,} weaker arrow{'s' if n_arrows > 1 else ''} not drawn")
    return tuple(notes)


def _description(
    automaton: FeatureAutomaton, cards: tuple[Card, ...], arrows: tuple[Arrow, ...]
) -> str:
    """Say the picture in words, for those who do not see it."""
    titles = {card.state_id: card.title for card in cards}
    steps = [
        f"{titles[arrow.source]} to {titles[arrow.target]}, {arrow.percent}, on {arrow.tokens}"
        for arrow in arrows[:12]
        if arrow.percent
    ]
    opening = f"A {automaton.kind} of {state_count(automaton)}."
    said = [visible(automaton.description)] if automaton.description else []
    return " ".join([opening, *said, *(f"{step}." for step in steps)])
