"""An automaton -> one sentence for people, by rule: what it does, how surely, in how much of the text.

1. Labels become words: tokens in backticks, classes by name, lists of HTML's names as what they are.
2. Each kind has its sentence: a loop goes on, a pair alternates, a chain says its states in order, and a
   system is told by its main way: from the busiest state along the strongest arrows.
3. Of the wordings, from full to terse, the first that is short enough is taken.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from circuits.arrivals import first_state, visits
from circuits.automaton import EXIT
from circuits.lettering import ELLIPSIS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from circuits.automaton import FeatureAutomaton, Transition

MAX_LENGTH = 159  # characters of a sentence
MAX_TOKEN = 14  # characters of a token in it
MIN_STEP = 0.1  # an arrow that is taken less often is not the main way
BREVITY = ((7, 3), (7, 2), (6, 2), (5, 2), (5, 1), (4, 1), (3, 1), (2, 1))  # places, tokens of each
CLASSES = {
    "[0-9]+": "digits",
    "[A-Z]+": "capital letters",
    "[A-Za-z0-9+/]+": "letters and digits",
    "line breaks, spaces": "line breaks and spaces",
    "bytes of split characters": "bytes of split characters",
    "Cjk": "Chinese characters",
}
_TAGS = (
    "a abbr b body br button code col dd div dl dt em font form h1 h2 h3 h4 h5 h6 head hr html i img input"
    " li link meta ol option p pre script section select small span strong style sub sup table tbody td"
    " th thead title tr tt ul var"
)
_ATTRIBUTES = (
    "align alt border class colspan content height href id lang name rel rowspan src style summary title"
    " type valign value width"
)
TAG_NAMES, ATTRIBUTES = frozenset(_TAGS.split()), frozenset(_ATTRIBUTES.split())
MARKUP = re.compile(r"`</`|a tag name")
_SCRIPT = re.compile(r"[A-Z][a-z]+")
_BLANKS = (
    (re.compile(r"(\\u\{d\})?\\n"), "a line break"),
    (re.compile(r"\\t"), "a tab"),
    (re.compile(r" "), "a space"),
    (re.compile(r"(\\n|\\t|\\u\{d\}| )+"), "blanks"),
)


class _Words(NamedTuple):
    """How labels are said."""

    known: frozenset[str]
    """Tokens of the automaton; a label that is none of them names a class."""

    most: int
    """Tokens of a list."""

    def of(self, label: str, last: str = "or") -> str:
        """Say a label: its class, or its first tokens."""
        if label not in self.known:
            if label in CLASSES:
                return CLASSES[label]
            if _SCRIPT.fullmatch(label):
                return f"{label} characters"
        parts = [part for part in re.split(r" {2}(?! *$)", label) if part]
        listed = [part for part in parts if part != ELLIPSIS]
        bare = {part.strip() for part in listed}
        if len(bare) > 1 and bare <= TAG_NAMES:
            return "a tag name"
        if len(bare) > 1 and bare <= ATTRIBUTES:
            return "an attribute"
        names = list(dict.fromkeys(map(_token, listed))) or ["some token"]
        if len(names) > self.most or len(listed) < len(parts):
            names = [*names[: self.most], "others"]
        return f" {last} ".join([", ".join(names[:-1]), *names[-1:]]).removeprefix(f" {last} ")


def describe(automaton: FeatureAutomaton) -> str:
    """Say in one sentence what an automaton does.

    Args:
        automaton: with its labels, transitions and scores.

    Returns:
        At most MAX_LENGTH characters of plain text, tokens in it in their printable form.

    Example:
        >>> from circuits.automaton import EdgeToken, FeatureAutomaton, State, Transition
        >>> again = Transition(0, 0, 0.83, (EdgeToken(1, "A", 1.0),), "[A-Z]+", 83)
        >>> states, scores = (State(0, "[A-Z]+", (3,)),), {"coverage": 0.029}
        >>> describe(FeatureAutomaton("a", "a", "loop", scores, states, (again,)))
        'Goes on with capital letters: after one, another follows 83 % of the time; 3 % of the text.'
    """
    sentences = (_sentence(automaton, *brevity) for brevity in BREVITY)
    said = next((one for one in sentences if len(one) <= MAX_LENGTH), "")
    if not said:
        said = _sentence(automaton, *BREVITY[-1])[: MAX_LENGTH - 1] + ELLIPSIS
    return said


def _sentence(automaton: FeatureAutomaton, n_places: int, n_tokens: int) -> str:
    words = _Words(frozenset(_tokens_of(automaton)), n_tokens)
    coverage = automaton.scores.get("coverage")
    text = "" if coverage is None else f"; {_percent(coverage)} of the text"
    n_states = len(automaton.states)
    if automaton.kind == "loop" and n_states == 1:
        return f"{_loop(automaton, words)}{text}."
    if automaton.kind == "pair" and n_states == 2:
        return f"{_pair(automaton, words)}{text}."
    if automaton.kind == "chain" and n_states > 1:
        return f"{_chain(automaton, words, n_places)}{text}."
    return f"{_system(automaton, words, n_places)}{text}."


def _loop(automaton: FeatureAutomaton, words: _Words) -> str:
    state = automaton.states[0]
    again = _chance(automaton, state.id, state.id)
    named = words.of(state.label, "and")
    return f"Goes on with {named}: after one, another follows {_percent(again)} of the time"


def _pair(automaton: FeatureAutomaton, words: _Words) -> str:
    a, b = automaton.states
    there, back = _chance(automaton, a.id, b.id), _chance(automaton, b.id, a.id)
    return (
        f"Alternates between {words.of(a.label)} and {words.of(b.label)}: from the first to the second "
        f"{_percent(there)} of the time, and back {_percent(back)}"
    )


def _chain(automaton: FeatureAutomaton, words: _Words, n_places: int) -> str:
    """Say the states in their order; those of a chain that was found stand in it."""
    ids = [state.id for state in automaton.states]
    seen = visits(automaton)
    following = set(pairwise(ids))
    on = sum(s.n_pairs for s in automaton.transitions if (s.source, s.target) in following)
    share = on / max(1, sum(seen[state_id] for state_id in ids[:-1]))
    places = [words.of(state.label) for state in automaton.states[:n_places]]
    rest = [f"{len(ids) - n_places} more"] if len(ids) > n_places else []
    said = ", then ".join([*places, *rest])
    return f"Says in order {said}: one leads to the next {_percent(share)} of the time"


def _system(automaton: FeatureAutomaton, words: _Words, n_places: int) -> str:
    start = first_state(automaton)
    way, is_round = _main_way(automaton, start)
    first = words.of(automaton.state(start).label)
    if not way:
        return f"Reads {first}, and leads on to no other state of its own"
    end = ", and round again" if is_round and len(way) < n_places else ", and so on"
    places = [words.of(step.label) for step in way[: n_places - 1]]
    steps = ", then ".join(places)
    opening = "Reads markup" if MARKUP.search(steps) else "Its main way"
    return f"{opening}: after {first} comes {steps}{end}"


def _main_way(automaton: FeatureAutomaton, start: int) -> tuple[list[Transition], bool]:
    """Give the arrows of the main way, and whether it comes back to its start."""
    way: list[Transition] = []
    here, seen = start, {start}
    while step := _strongest(automaton, here):
        way.append(step)
        here = int(step.target)
        if here in seen:
            return way, here == start
        seen.add(here)
    return way, False


def _strongest(automaton: FeatureAutomaton, state_id: int) -> Transition | None:
    """Give the likeliest arrow to another state; None where none is taken often."""
    for step in automaton.leaving(state_id):
        if step.target not in (EXIT, state_id) and step.probability >= MIN_STEP:
            return step
    return None


def _chance(automaton: FeatureAutomaton, source: int, target: int) -> float:
    return sum(step.probability for step in automaton.leaving(source) if step.target == target)


def _tokens_of(automaton: FeatureAutomaton) -> Iterator[str]:
    """Give the tokens that the automaton is known to run on."""
    for step in automaton.transitions:
        yield from (token.token_str for token in step.tokens)
    for state in automaton.states:
        yield from (example.tokens[example.focus] for example in state.examples)


def _token(text: str) -> str:
    """Say one token: blanks in words, others in backticks, without the space before them."""
    for pattern, words in _BLANKS:
        if pattern.fullmatch(text):
            return words
    bare = text.strip(" ")
    shown = bare if len(bare) <= MAX_TOKEN else bare[: MAX_TOKEN - 1] + ELLIPSIS
    return f"`{shown}`" if "`" not in shown else f"\u201c{shown}\u201d"


def _percent(share: float) -> str:
    """Write a share in percent, small ones with one digit.

    Example:
        >>> _percent(0.314), _percent(0.0021)
        ('31 %', '0.2 %')
    """
    return f"{share * 100:.0f} %" if share >= 0.01 or share <= 0 else f"{share * 100:.1g} %"
