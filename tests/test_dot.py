"""Drawing; hostile tokens (row D1 of the table of faults) are parsed back and found literally."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest
from drawn import HOSTILE, hostile, html_system, large

from circuits import cards, lettering, palette, zoom
from circuits.dot import automaton_dot, layout_dot, quoted, quoted_text, table_text
from circuits.layout import lay_out
from circuits.zoom import drawn


def test_the_same_automaton_gives_the_same_text() -> None:
    assert automaton_dot(html_system()) == automaton_dot(html_system())


def test_an_arrow_carries_tokens_and_percentage() -> None:
    text = automaton_dot(html_system())
    assert 's0 -> s1 [id=t1, label="div a li\\n91\u202f%"' in text
    assert "\u2423class" in text


def test_exit_is_a_note_on_the_card_and_no_arrow() -> None:
    text = automaton_dot(html_system())
    assert "EXIT" not in text
    assert "leaves 9\u202f%" in text


def test_pens_grow_with_probability() -> None:
    text = automaton_dot(html_system())
    pens = [float(pen) for pen in re.findall(r"penwidth=([\d.]+)", text)]
    assert pens == sorted(pens, reverse=True)
    assert pens[0] > 2 * pens[-1] * 0.8


def test_dark_paper_has_other_inks() -> None:
    light, dark = (automaton_dot(html_system(), theme=theme) for theme in ("light", "dark"))
    assert 'bgcolor="#ffffff"' in light
    assert 'bgcolor="#12161b"' in dark


@pytest.mark.parametrize("token", HOSTILE)
def test_a_hostile_token_is_escaped_in_every_place(token: str) -> None:
    undone = html.unescape(table_text(token)).replace("\\\\", "\\")
    assert undone == token
    assert "<" not in table_text(token)
    inside = quoted_text(token)
    assert not re.search(r'(?<!\\)(\\\\)*"', inside)
    assert html.unescape(inside).replace('\\"', '"').replace("\\\\", "\\") == token
    assert quoted(token).count('"') >= 2


def test_the_embedded_graphviz_reads_hostile_text() -> None:
    layout = lay_out(automaton_dot(hostile()))
    assert len(layout.nodes) == len(HOSTILE)
    assert len(layout.curves) == len(HOSTILE)


def test_the_layout_sees_sizes_and_no_word() -> None:
    text = layout_dot(cards.plan(hostile()), direction="LR")
    assert text.isascii()
    assert not [token for token in HOSTILE if token not in ("\\n", "&") and token in text]
    assert set(lay_out(text).nodes) == set(lay_out(automaton_dot(hostile())).nodes)


def test_weak_arrows_are_hidden_and_counted() -> None:
    drawing = cards.plan(html_system())
    assert (2, 0) not in {(arrow.source, arrow.target) for arrow in drawing.arrows}
    assert drawing.hidden == ("1 weaker arrow not drawn",)


def test_a_weak_arrow_stays_when_its_state_would_be_cut_off() -> None:
    automaton = html_system()
    steps = tuple(step for step in automaton.transitions if {step.source, step.target} != {2, 3})
    steps = tuple(replace(step, probability=0.001) if step.target == 2 else step for step in steps)
    drawing = cards.plan(replace(automaton, transitions=steps))
    joined = [arrow for arrow in drawing.arrows if 2 in (arrow.source, arrow.target)]
    assert len(joined) == 1
    assert joined[0].probability < cards.MIN_PROBABILITY


def test_of_too_many_states_the_strongest_are_drawn_and_the_rest_counted() -> None:
    drawing = cards.plan(large(5_000, 100_000))
    assert len(drawing.cards) == cards.MAX_STATES
    assert len(drawing.arrows) <= cards.ARROWS_PER_STATE * cards.MAX_STATES + cards.MAX_STATES
    assert drawing.hidden[0] == "the 40 strongest of 5,000 states are drawn"
    assert re.match(r"[\d,]+ weaker arrows not drawn", drawing.hidden[1])


def test_of_more_than_eight_states_the_most_alike_are_merged() -> None:
    stored = large(23, 400)
    drawing = cards.plan(drawn(stored))
    assert len(drawing.cards) == 8
    assert drawing.kind == "system · 8 of 23 states"
    assert drawing.hidden[0] == "8 of 23 states, the most alike merged; --states 23 draws all"
    assert "8 of 23 states" in drawing.description
    assert len(cards.plan(drawn(stored, 12)).cards) == 12
    assert drawn(stored, 23) is drawn(stored, 40) is stored


def test_eight_states_or_fewer_are_drawn_as_they_are() -> None:
    assert drawn(html_system()) == html_system()
    assert cards.plan(drawn(html_system())).kind == "system · 4 states"
    assert drawn(large(8, 40)) == large(8, 40)


def test_states_beyond_what_a_picture_holds_are_counted_with_the_most_there_can_be() -> None:
    hidden = cards.plan(drawn(large(60, 400))).hidden
    assert hidden[0] == "8 of 60 states, the most alike merged; --states 40 draws more"


def test_too_many_states_are_not_merged_unasked() -> None:
    stored = large(zoom.MERGED_STATES + 1, 2_000)
    assert drawn(stored) is stored


def test_eight_states_have_eight_colours() -> None:
    assert len(set(palette.ACCENTS)) >= zoom.DRAWN_STATES


def test_no_more_than_two_arrows_a_state_are_drawn() -> None:
    drawing = cards.plan(large(8, 2_000))
    assert len(drawing.arrows) <= 2 * 8 + 7
    assert len(cards.plan(large(8, 2_000), detail=False).arrows) <= 8 + 7


def test_scores_on_unseen_text_stand_for_the_others_where_they_were_measured() -> None:
    measured = html_system()
    assert cards.plan(measured).scores == ("held out retention 0.86",)
    unmeasured = replace(measured, scores={"retention": 0.87, "held_out_retention": None})
    assert cards.plan(unmeasured).scores == ("retention 0.87", "held out not measured")


def test_firing_tokens_stand_in_one_column() -> None:
    drawing = cards.plan(html_system())
    columns = {
        piece.column
        for card in drawing.cards
        for line in card.lines
        for piece in line
        if piece.is_focus
    }
    assert len(columns) == 1


def test_example_lines_stay_inside_the_card() -> None:
    drawing = cards.plan(hostile())
    room = (drawing.card_width - 2 * cards.PADDING) / (lettering.MONO_EM * cards.TOKEN_SIZE)
    for card in drawing.cards:
        for line in card.lines:
            assert line[0].column >= 0
            assert line[-1].column + line[-1].cells <= room + 0.05


@pytest.mark.parametrize(
    ("text", "cut"), [("short", "short"), ("a" * 30, "a" * 9 + "…"), ("汉" * 9, "汉汉汉汉…")]
)
def test_long_tokens_end_in_an_ellipsis(text: str, cut: str) -> None:
    assert lettering.cut_cells(text, 10) == cut


def test_the_end_is_kept_on_the_left_of_the_firing_token() -> None:
    assert lettering.cut_cells("abcdefgh", 4, keep_end=True) == "…fgh"


def test_spaces_at_the_ends_of_a_label_are_drawn() -> None:
    assert lettering.shown_label(" <a b ") == "␣<a b␣"
    assert lettering.shown_label("  ") == "␣␣"
    assert lettering.shown_label("<      ") == "<␣␣␣␣␣␣"
    assert lettering.shown_label("<    a") == "<\u00a0\u00a0␣␣a"
    assert lettering.shown_token(" a b") == "␣a␣b"
