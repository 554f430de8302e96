"""Labels are what a person would write, whatever the tokens are."""

from __future__ import annotations

import pytest
from drawn import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from circuits.summarise import ELLIPSIS, summarise
from sae_core.tokens import token_str


def evenly(*texts: str) -> list[tuple[str, float]]:
    return [(text, 1 / len(texts)) for text in texts]


@pytest.mark.parametrize(
    ("tokens", "label"),
    [
        ([], ""),
        ([("<", 0.0)], ""),
        ([("<", 1.0)], "<"),
        ([("<", 0.7), ("</", 0.25), ("x", 0.05)], "<  </"),
        (evenly("a", "b", "c", "d"), "a  b  c  d"),
        (evenly("a", "b", "c", "d", "e"), "a  b  c  d"),  # 4 of 5 is enough
        (evenly(*(str(n) for n in range(20))), "[0-9]+"),
        (evenly(*(f" {n}" for n in range(20))), "[0-9]+"),
        (evenly(*"ABCDEFGH"), "[A-Z]+"),
        (evenly(*".,;:!?#*"), f".  ,  ;  :  {ELLIPSIS}"),
        (evenly(*(" " * n for n in range(1, 9))), "line breaks, spaces"),
        (evenly("\\n", "\\n ", "\\t", "\\u{d}\\n", "\\n\\n", "  "), "line breaks, spaces"),
        (evenly("Qg", "zA", "7f", "Xk", "+/", "9Z"), "[A-Za-z0-9+/]+"),
        (evenly(*(f"\\x{n:02x}" for n in range(0x80, 0x90))), "bytes of split characters"),
        (evenly(*"\u0b85\u0b86\u0b87\u0b88\u0b89\u0b8a"), "Tamil"),
        (evenly(*"\u4e00\u4e01\u4e02\u4e03\u4e04\u4e05"), "Cjk"),
        (evenly("the", "of", "and", "to", "in", "it"), f"the  of  and  to  {ELLIPSIS}"),
    ],
)
def test_labels_are_those_a_person_would_write(tokens: list[tuple[str, float]], label: str) -> None:
    assert summarise(tokens) == label


def test_a_class_needs_most_of_the_mass() -> None:
    words = [("the", 0.15), ("of", 0.15)]
    digits = [(str(n), 0.07) for n in range(10)]
    assert summarise(words + digits).startswith("the  of  ")
    assert summarise([("the", 0.1), *((str(n), 0.09) for n in range(10))]) == "[0-9]+"


def test_shares_that_do_not_sum_to_1_are_weighed_among_themselves() -> None:
    assert summarise([("<", 0.07), ("</", 0.025), ("x", 0.005)]) == "<  </"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_token_is_written_as_it_is(text: str) -> None:
    assert summarise([(text, 1.0)]) == text


def test_many_hostile_tokens_make_a_short_label() -> None:
    assert summarise(evenly(*HOSTILE)) == "  ".join([*HOSTILE[:3], ELLIPSIS])


@given(st.lists(st.tuples(st.binary(max_size=6).map(token_str), st.floats(0, 1)), max_size=30))
def test_any_tokens_have_a_label_of_one_line(tokens: list[tuple[str, float]]) -> None:
    ordered = sorted(tokens, key=lambda pair: -pair[1])
    label = summarise(ordered)
    assert label.isprintable()
    assert label == summarise(ordered)
    assert sum(share for _, share in tokens) == 0 or label or not ordered[0][0]
