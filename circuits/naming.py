"""Names and titles of automata, made of the tokens on which their states are current."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from circuits.automaton import State, Transition

MAX_WORDS = 4  # a slug of four words is still typed by hand
_SIGN_NAMES = {
    "<": "lt", ">": "gt", "/": "slash", "=": "eq", '"': "quote", "'": "apostrophe",
    "_": "underscore", "-": "dash", ".": "dot", ",": "comma", ":": "colon", ";": "semicolon",
    "#": "hash", "(": "open", ")": "close", "{": "brace", "}": "endbrace", "[": "bracket",
    "]": "endbracket", "*": "star", "+": "plus", "&": "and", "%": "percent", "$": "dollar",
    "@": "at", "!": "bang", "?": "question", "|": "bar", "~": "tilde", "^": "caret", "`": "tick",
}  # fmt: skip
_CLASS_NAMES = {"[0-9]+": "digits", "[A-Z]+": "capitals", "[A-Za-z0-9+/]+": "alphanumeric"}


def title_of(kind: str, states: Sequence[State], transitions: Sequence[Transition]) -> str:
    """Give a title: the strongest tokens of the states, in the order in which they follow each other.

    Args:
        kind: loop, pair, chain or system.
        states: the automaton's states.
        transitions: its transitions.
    """
    arrow = " \u21c4 " if kind == "pair" else " \u2192 "
    walk = [_lead(state) for state in _walk(states, transitions)]
    text = arrow.join(walk)
    return f"{text} \u21ba" if kind == "loop" else text


def slug_of(kind: str, states: Sequence[State], transitions: Sequence[Transition]) -> str:
    """Give a name `[a-z0-9][a-z0-9-]*` made of the same tokens as the title."""
    words = [_slug(_lead(state)) for state in _walk(states, transitions)]
    kept = [word for word in dict.fromkeys(words) if word][:MAX_WORDS]
    if not kept:
        kept = [f"f{states[0].features[0]}"]
    return "-".join([kind, *kept])


def _walk(states: Sequence[State], transitions: Sequence[Transition]) -> list[State]:
    """Order the states along the strongest arrows, from the busiest state on."""
    by_id = {state.id: state for state in states}
    visits: dict[int, int] = dict.fromkeys(by_id, 0)
    for step in transitions:
        visits[step.source] += step.n_pairs
    left = set(by_id)
    here = max(sorted(left), key=lambda state: visits[state])
    order: list[State] = []
    while left:
        order.append(by_id[here])
        left.discard(here)
        ahead = [s for s in transitions if s.source == here and s.target in left]
        if ahead:
            here = int(max(ahead, key=lambda step: (step.n_pairs, -int(step.target))).target)
        elif left:
            here = max(sorted(left), key=lambda state: visits[state])
    return order


def _lead(state: State) -> str:
    return state.label.strip().split("  ")[0].strip() or f"F{state.features[0]}"


def _slug(text: str) -> str:
    if text in _CLASS_NAMES:
        return _CLASS_NAMES[text]
    named = "".join(f"-{_SIGN_NAMES[char]}-" if char in _SIGN_NAMES else char for char in text)
    return re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")[:24].strip("-")
