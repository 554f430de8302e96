"""Names are slugs that can be typed; titles follow the strongest arrows."""

from __future__ import annotations

import re

import pytest
from drawn import HOSTILE, html_system
from hypothesis import given
from hypothesis import strategies as st

from circuits.automaton import EXIT, State, Transition
from circuits.naming import slug_of, title_of

SLUG = re.compile(r"[a-z0-9][a-z0-9-]*")


def states(*labels: str) -> list[State]:
    return [State(at, label, (at + 20,)) for at, label in enumerate(labels)]


def steps(*arrows: tuple[int, int | str, int]) -> list[Transition]:
    return [
        Transition(source, EXIT if target == EXIT else int(target), 0.5, (), "", n_pairs)
        for source, target, n_pairs in arrows
    ]


def test_a_chain_is_titled_in_its_order() -> None:
    arrows = steps((2, 0, 50), (0, 1, 45), (1, EXIT, 45))
    found = states(" WARRANTIES", " OF", " MERCHANT")
    assert title_of("chain", found, arrows) == "MERCHANT \u2192 WARRANTIES \u2192 OF"
    assert slug_of("chain", found, arrows) == "chain-merchant-warranties-of"


def test_a_pair_goes_back_and_forth() -> None:
    arrows = steps((0, 1, 9), (1, 0, 8))
    assert title_of("pair", states("[A-Z]+", "_"), arrows) == "[A-Z]+ \u21c4 _"


def test_a_loop_returns_to_itself() -> None:
    assert title_of("loop", states("[0-9]+"), steps((0, 0, 9))) == "[0-9]+ \u21ba"


def test_the_walk_starts_at_the_busiest_state_and_takes_the_strongest_arrow() -> None:
    automaton = html_system()  # 1 is left 1000 times, as 0 is; 0 comes first, then 0-1, 1-3, 2
    title = title_of("system", automaton.states, automaton.transitions)
    assert title == "tag opens < \u2192 tag name \u2192 text after > \u2192 attribute name"


def test_signs_are_spelt() -> None:
    assert slug_of("pair", states("</", '="'), steps((0, 1, 9), (1, 0, 8))) == (
        "pair-lt-slash-eq-quote"
    )


def test_a_label_without_latin_letters_falls_back_on_the_feature() -> None:
    assert slug_of("loop", states("\u0b85"), steps((0, 0, 9))) == "loop-f20"


def test_only_the_first_tokens_of_a_label_name_a_state() -> None:
    assert slug_of("loop", states("div  span  +12"), steps((0, 0, 9))) == "loop-div"


def test_states_of_equal_label_are_named_once() -> None:
    found = states("a", "b", "a")
    arrows = steps((0, 1, 9), (1, 2, 8))
    assert slug_of("system", found, arrows) == "system-a-b"


def test_no_more_than_four_words_name_an_automaton() -> None:
    arrows = steps(*((at, at + 1, 9) for at in range(6)))
    assert slug_of("chain", states(*"abcdefg"), arrows) == "chain-a-b-c-d"


def test_a_state_without_arrows_is_named_too() -> None:
    assert title_of("system", states("a", "b"), []) == "a \u2192 b"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_token_makes_a_slug(text: str) -> None:
    assert SLUG.fullmatch(slug_of("loop", states(text), steps((0, 0, 9))))


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_any_labels_make_a_slug_of_bounded_length(labels: list[str]) -> None:
    slug = slug_of("system", states(*labels), [])
    assert SLUG.fullmatch(slug)
    assert len(slug) <= len("system") + 4 * 25
