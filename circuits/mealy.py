"""An automaton as a stochastic Mealy machine, in the DOT dialect that AALpy reads.

1. A state is a node `s<id>`; EXIT is a node that emits END for ever, so every row sums to 1.
2. An arc is (state, next state, token) with P(next state, token | state). Its label is
   `next/t<token_id>:<probability>`: `next` is the machine's one input, the token its output. Tokens
   that an arrow does not list are one output, OTHER; what a state's probabilities lack to 1 leads
   to EXIT on OTHER.
3. The machine starts in the most visited state, as `FeatureAutomaton.sample` does.

Token ids stand for tokens, whose text may hold any character; the text is the arc's tooltip. An
automaton's name is left out: AALpy takes a line that holds `label` for a node.

Source: https://github.com/DES-Lab/AALpy/wiki (stochastic Mealy machines, `smm`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from circuits.arrivals import first_state
from circuits.automaton import EXIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from circuits.automaton import FeatureAutomaton

INPUT = "next"
OTHER = "OTHER"
END = "END"
LEAST = 1e-12  # mass that only rounding makes


class _Output(NamedTuple):
    """What an arc emits."""

    symbol: str
    """`t` and the token id, OTHER or END."""

    text: str
    """Printable token; empty for OTHER and END."""


def mealy_dot(automaton: FeatureAutomaton) -> str:
    """Give the automaton as DOT text for `aalpy.utils.load_automaton_from_file(path, "smm")`.

    Args:
        automaton: states and transitions.

    Example:
        >>> from circuits.automaton import EdgeToken, FeatureAutomaton, State, Transition
        >>> again = Transition(0, 0, 0.75, (EdgeToken(17, "a", 1.0),), "a", 75)
        >>> end = Transition(0, "EXIT", 0.25, (EdgeToken(4, "=", 0.5),), "=", 25)
        >>> state = State(0, "a", (3,))
        >>> machine = FeatureAutomaton("a", "a", "loop", {}, (state,), (again, end))
        >>> print(mealy_dot(machine))
        digraph {
        s0 [label="s0"];
        EXIT [label="EXIT"];
        s0 -> s0 [label="next/t17:0.75", tooltip="a"];
        s0 -> EXIT [label="next/t4:0.125", tooltip="&#61;"];
        s0 -> EXIT [label="next/OTHER:0.125", tooltip=""];
        EXIT -> EXIT [label="next/END:1.0", tooltip=""];
        __start0 [shape=none, label=""];
        __start0 -> s0 [label=""];
        }
        <BLANKLINE>
    """
    names = [*(f"s{state.id}" for state in automaton.states), EXIT]
    lines = [
        "digraph {",
        *(f'{name} [label="{name}"];' for name in names),
        *(line for state in automaton.states for line in _arcs(automaton, state.id)),
        _arc(EXIT, EXIT, _Output(END, ""), 1.0),
        '__start0 [shape=none, label=""];',
        f'__start0 -> s{first_state(automaton)} [label=""];',
        "}",
    ]
    return "\n".join(lines) + "\n"


def _arcs(automaton: FeatureAutomaton, state_id: int) -> Iterator[str]:
    """Give a state's arcs, a line each, in the order of its arrows."""
    chances: dict[tuple[str, _Output], float] = {}
    lacking = 1.0
    for step in automaton.leaving(state_id):
        target = EXIT if step.target == EXIT else f"s{step.target}"
        outputs = [(_Output(f"t{t.token_id}", t.token_str), t.share) for t in step.tokens]
        outputs.append((_Output(OTHER, ""), 1 - sum(share for _, share in outputs)))
        for output, share in outputs:
            key = (target, output)
            chances[key] = chances.get(key, 0.0) + step.probability * share
        lacking -= step.probability
    to_exit = (EXIT, _Output(OTHER, ""))
    chances[to_exit] = chances.get(to_exit, 0.0) + lacking
    for (target, output), chance in chances.items():
        if chance > LEAST:
            yield _arc(f"s{state_id}", target, output, chance)


def _arc(source: str, target: str, output: _Output, chance: float) -> str:
    label = f"{INPUT}/{output.symbol}:{chance}"
    return f'{source} -> {target} [label="{label}", tooltip="{_entities(output.text)}"];'


def _entities(text: str) -> str:
    """Escape all but ASCII letters and digits: AALpy reads lines without regard to quotes."""
    return "".join(c if c.isascii() and c.isalnum() else f"&#{ord(c)};" for c in text)
