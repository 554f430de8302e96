"""The sentence of an automaton says, by rule, what a reader of its arrows would say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from drawn import HOSTILE, hostile, html_system, large
from hypothesis import given, settings
from hypothesis import strategies as st
from random_automata import automata

from circuits.automaton import EXIT, EdgeToken, FeatureAutomaton, State, Transition
from circuits.describe import MAX_LENGTH, describe


def made(
    kind: str, labels: list[str], arrows: list[tuple[int, int | str, float, str]], **scores: float
) -> FeatureAutomaton:
    """Give an automaton of states by label, and arrows of 100 pairs x probability."""
    states = tuple(State(at, label, (at,)) for at, label in enumerate(labels))
    steps = tuple(
        Transition(source, EXIT if target == EXIT else int(target), p, (), label, round(100 * p))
        for source, target, p, label in arrows
    )
    return FeatureAutomaton("a", "a", kind, dict(scores), states, steps)


def test_a_loop_goes_on() -> None:
    loop = made("loop", ["[A-Z]+"], [(0, 0, 0.83, "[A-Z]+"), (0, EXIT, 0.17, "_")], coverage=0.03)
    assert describe(loop) == (
        "Goes on with capital letters: after one, another follows 83 % of the time; 3 % of the text."
    )


def test_a_pair_alternates() -> None:
    arrows = [(0, 1, 0.5, "."), (0, EXIT, 0.5, '"'), (1, 0, 0.8, "[0-9]+"), (1, EXIT, 0.2, " ")]
    assert describe(made("pair", ["[0-9]+", "."], arrows, coverage=0.0021)) == (
        "Alternates between digits and `.`: from the first to the second 50 % of the time, and back"
        " 80 %; 0.2 % of the text."
    )


def test_a_chain_says_its_states_in_order() -> None:
    # Of the 200 pairs that leave the first two states, 90 + 60 lead on.
    arrows = [(0, 1, 0.9, " OR"), (0, EXIT, 0.1, ""), (1, 2, 0.6, ""), (1, EXIT, 0.4, "")]
    labels = ["MERCHANTABILITY", " OR", " FITNESS"]
    assert describe(made("chain", labels, [*arrows, (2, EXIT, 1.0, "")])) == (
        "Says in order `MERCHANTABILI\u2026`, then `OR`, then `FITNESS`: one leads to the next"
        " 75 % of the time."
    )


def test_a_system_is_told_by_its_main_way() -> None:
    arrows = [
        (0, 1, 0.9, "a  div  \u2026"), (0, 0, 0.1, "<"), (1, 2, 0.6, " class"), (1, 1, 0.4, "b"),
        (2, 0, 0.7, "="), (2, EXIT, 0.3, "x"),
    ]  # fmt: skip
    told = "after `<` or `</` comes a tag name, then `class`, then `=`, and round again"
    system = made("system", ["<  </", "a", " class"], arrows, coverage=0.31)
    assert describe(system) == f"Reads markup: {told}; 31 % of the text."


def test_arrows_seldom_taken_and_ways_out_are_not_the_main_way() -> None:
    arrows = [(0, 1, 0.3, "x"), (0, EXIT, 0.7, "y"), (1, 2, 0.09, "z"), (1, EXIT, 0.91, "")]
    system = made("system", ["a", "b", "c"], [*arrows, (2, EXIT, 0.05, "")])
    assert describe(system) == "Its main way: after `a` comes `x`, and so on."


def test_a_system_whose_states_lead_nowhere_says_so() -> None:
    lonely = made("system", ["a", "b", "c"], [(at, EXIT, 1.0, "") for at in range(3)])
    assert describe(lonely) == "Reads `a`, and leads on to no other state of its own."


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("\\n", "a line break"),
        ("\\t  \\n", "a tab and a line break"),
        (" ", "a space"),
        ("line breaks, spaces", "line breaks and spaces"),
        ("Tamil", "Tamil characters"),
        ("Cjk", "Chinese characters"),
        ("span  a  div  \u2026", "a tag name"),
        (" href   title   id  \u2026", "an attribute"),
        (" the  ,  \u2026", "`the`, `,` and others"),
        (" the  the", "`the`"),
        ("", "some token"),
        ("`", "\u201c`\u201d"),
    ],
)
def test_labels_become_words(label: str, words: str) -> None:
    loop = made("loop", [label], [(0, 0, 1.0, label)])
    assert describe(loop) == f"Goes on with {words}: after one, another follows 100 % of the time."


def test_a_token_that_is_called_like_a_class_is_a_token() -> None:
    loop = made("loop", ["Tamil"], [(0, 0, 1.0, "Tamil")])
    known = (replace(loop.transitions[0], tokens=(EdgeToken(1, "Tamil", 1.0),)),)
    assert describe(replace(loop, transitions=known)).startswith("Goes on with `Tamil`: ")


@pytest.mark.parametrize("token", [one for one in HOSTILE if one != "\\n"])
def test_a_hostile_token_stands_in_the_sentence_as_it_is(token: str) -> None:
    said = describe(made("loop", [token], [(0, 0, 1.0, token)]))
    assert token[:13].strip() in said


@pytest.mark.parametrize("make", [html_system, hostile, lambda: large(60, 400)])
@pytest.mark.parametrize("kind", ["loop", "pair", "chain", "system"])
def test_any_kind_and_size_has_one_short_sentence(make, kind) -> None:  # noqa: ANN001
    said = describe(replace(make(), kind=kind))
    assert said.endswith((".", "\u2026"))
    assert len(said) <= MAX_LENGTH
    assert said == describe(replace(make(), kind=kind))


@settings(deadline=None)
@given(automata(), st.sampled_from(["loop", "pair", "chain", "system"]))
def test_every_automaton_has_a_sentence(automaton: FeatureAutomaton, kind: str) -> None:
    said = describe(replace(automaton, kind=kind))
    assert 0 < len(said) <= MAX_LENGTH


@settings(deadline=None)
@given(st.lists(st.text(max_size=60), min_size=2, max_size=9))
def test_any_labels_make_a_short_sentence(labels: list[str]) -> None:
    arrows = [(at, (at + 1) % len(labels), 1.0, label) for at, label in enumerate(labels)]
    for kind in ("pair", "chain", "system"):
        assert len(describe(made(kind, labels, list(arrows)))) <= MAX_LENGTH
