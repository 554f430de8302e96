"""Drawing; hostile tokens (row D1 of the table of faults) are parsed back and found literally."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from drawn import HOSTILE, hostile, html_system, large, loop

from circuits import cards, layout, lettering
from circuits.automaton import FeatureAutomaton
from circuits.dot import automaton_dot
from circuits.svg import automaton_svg
from circuits.svg_parts import LABEL_GAP, label_box
from sae_core.errors import RenderError

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"


def texts(root: ET.Element) -> list[str]:
    return ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]


@pytest.fixture
def fake_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that makes the system's `dot` a shell script."""

    def make(script: str) -> None:
        path = tmp_path / "dot"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")

    return make


@pytest.mark.parametrize("make", [html_system, loop, hostile])
def test_the_picture_is_the_same_each_time(make: Any) -> None:
    assert automaton_svg(make()).text == automaton_svg(make()).text


def test_the_picture_does_not_depend_on_what_was_drawn_before() -> None:
    first = automaton_svg(loop()).text
    automaton_svg(hostile())
    assert automaton_svg(loop()).text == first


def test_every_state_arrow_and_example_is_text_in_the_picture() -> None:
    found = texts(ET.fromstring(automaton_svg(html_system()).text))
    assert "F20 · F311" in found
    for word in ("tag opens <", "F20 · F311", "leaves 9\u202f%", "91\u202f%", "␣href", "div a li"):
        assert word in found
    assert "held out retention 0.86" in " ".join(found)
    assert "1 weaker arrow not drawn" in found


def test_hostile_tokens_stand_in_the_picture_as_they_are() -> None:
    root = ET.fromstring(automaton_svg(hostile()).text)
    found = set(texts(root))
    room = cards.LABEL_CELLS
    for token in HOSTILE:
        shown = lettering.shown_label(token)
        assert shown in found or lettering.cut_cells(shown, room) in found
    tags = {node.tag.removeprefix(SVG) for node in root.iter()}
    assert tags == {"svg", "title", "desc", "style", "rect", "g", "path", "text"}
    assert not [name for node in root.iter() for name in node.attrib if name.startswith("on")]


@pytest.mark.parametrize("text", ["a\x00b\x1b[31m", "\u202egnp.exe", "\ufffe", "\U000e0041"])
def test_characters_that_xml_forbids_or_nobody_sees_are_written_out(text: str) -> None:
    automaton = FeatureAutomaton.from_json(loop().to_json().replace("base64", "x"))
    state = automaton.states[0].__class__(7, text, (1,), ())
    automaton = FeatureAutomaton("x", text, "loop", {}, (state,), automaton.transitions)
    assert "\\u{" in "".join(texts(ET.fromstring(automaton_svg(automaton).text)))


def test_nothing_is_fetched_and_no_script_runs() -> None:
    text = automaton_svg(html_system()).text
    assert set(re.findall(r"[a-z]+://[^\"'\s]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(script|image|foreignObject|use|a)\b|href=|url\(|@import", text)


def test_the_picture_has_a_title_a_description_and_a_view_box() -> None:
    root = ET.fromstring(automaton_svg(html_system()).text)
    by_id = {node.get("id"): node.text for node in root.iter()}
    title, words = (by_id[name] for name in root.attrib["aria-labelledby"].split())
    assert title == 'HTML: <name attribute="value">'
    assert words is not None
    assert "tag opens < to tag name, 91\u202f%, on div a li" in words
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert 100 < float(root.attrib["width"]) <= 1600
    ratio = float(root.attrib["width"]) / float(root.attrib["height"])
    assert abs(ratio - width / height) < 0.02


def test_cards_are_of_one_size_and_do_not_overlap() -> None:
    root = ET.fromstring(automaton_svg(large(12, 40)).text)
    boxes = [node for node in root.iter(f"{SVG}g") if node.get("class") == "sa-state"]
    sizes = {(box[0].get("width"), box[0].get("height")) for box in boxes}
    assert len(boxes) == 12
    assert len(sizes) == 1
    width, height = map(float, next((a, b) for a, b in sizes if a and b))
    places = [tuple(map(float, re.findall(r"-?[\d.]+", box.attrib["transform"]))) for box in boxes]
    for at, (x, y) in enumerate(places):
        for u, v in places[at + 1 :]:
            assert abs(x - u) >= width or abs(y - v) >= height


def boxes_of(text: str, name: str) -> list[tuple[float, float, float, float]]:
    """Give the first rectangle of each group of a class, moved as the group is."""
    found = []
    for node in ET.fromstring(text).iter(f"{SVG}g"):
        if node.get("class") == name:
            moved = re.findall(r"-?[\d.]+", node.get("transform", "0 0"))
            x, y, width, height = (
                float(node[0].get(key, 0)) for key in ("x", "y", "width", "height")
            )
            found.append((x + float(moved[0]), y + float(moved[1]), width, height))
    return found


@pytest.mark.parametrize("make", [html_system, loop, lambda: large(8, 30)])
def test_the_words_of_an_arrow_stand_clear_of_cards_and_beside_their_arrow(make: Any) -> None:
    drawing = cards.plan(make())
    text = automaton_svg(make()).text
    labels = boxes_of(text, "sa-label")
    assert len(labels) == len(drawing.arrows)
    for x, y, width, height in labels:
        for u, v, card_width, card_height in boxes_of(text, "sa-state"):
            assert (
                x + width <= u + 1
                or u + card_width <= x + 1
                or y + height <= v + 1
                or (v + card_height <= y + 1)
            )


def test_words_are_moved_up_to_a_curve_that_is_far_and_no_further() -> None:
    arrow = cards.Arrow(0, 1, 0.5, "ab", "50\u202f%")
    straight = tuple(layout.Point(0.0, 10.0 * at) for at in range(4))
    for x in (200.0, -200.0):
        box = label_box(arrow, layout.Curve(straight, straight[-1], layout.Point(x, 15.0)))
        assert box is not None
        assert min(abs(box.left), abs(box.right)) == LABEL_GAP
        assert (box.left > 0) == (x > 0)
    near = layout.Point(LABEL_GAP, 15.0)
    box = label_box(arrow, layout.Curve(straight, straight[-1], near))
    assert box is not None
    assert (box.left + box.right) / 2 == near.x


def test_a_small_picture_is_no_wider_than_its_words_need() -> None:
    root = ET.fromstring(automaton_svg(loop()).text)
    assert float(root.attrib["viewBox"].split()[2]) < 500


def test_a_picture_says_how_it_is_read() -> None:
    found = " ".join(texts(ET.fromstring(automaton_svg(loop()).text)))
    assert "Card: a state, its features (F)" in found


def test_a_picture_of_any_automaton_is_small_and_quick() -> None:
    automaton_svg(loop())  # compiles the embedded layout
    start = time.perf_counter()
    text = automaton_svg(large(5_000, 100_000)).text
    assert len(text.encode()) < 200_000
    assert time.perf_counter() - start < 10
    assert "strongest of 5,000 states" in text


def test_a_thumbnail_has_titles_and_arrows_only() -> None:
    root = ET.fromstring(automaton_svg(html_system(), detail=False).text)
    assert sorted(texts(root)) == ["attribute name", "tag name", "tag opens <", "text after >"]


def test_no_dot_means_the_embedded_layout_and_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    picture = automaton_svg(loop(), engine="dot")
    assert picture.text == automaton_svg(loop()).text
    assert len(picture.notes) == 1
    assert re.search("not installed.*the embedded layout was used", picture.notes[0])


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo boom >&2; exit 3", "failed with code 3: boom"),
        ("exit 0", "failed with code 0: it printed nothing"),
        ("kill -9 $$", "failed with code -9"),
        ("echo '{\"objects\": [{}]}'", "printed no layout"),
        ("head -c 3000 /dev/urandom", "printed no layout"),
        ("echo '{}'", "printed no layout"),
    ],
)
def test_a_broken_dot_means_the_embedded_layout_and_a_note(
    fake_dot: Any, script: str, said: str
) -> None:
    fake_dot(script)
    picture = automaton_svg(loop(), engine="dot")
    assert picture.text == automaton_svg(loop()).text
    assert said in picture.notes[0]


def test_a_dot_that_lays_out_another_graph_means_a_clear_error(fake_dot: Any) -> None:
    fake_dot('echo \'{"objects": [{"name": "zz", "pos": "1,1"}]}\'')
    with pytest.raises(RenderError, match="placed no state 7"):
        automaton_svg(loop(), engine="dot")


def test_a_dot_that_hangs_is_ended_with_its_children(fake_dot: Any) -> None:
    fake_dot("sleep 30 & sleep 30")
    start = time.perf_counter()
    with pytest.raises(RenderError, match=r"took over 0\.3 s"):
        layout.run_dot("digraph {}", "json0", seconds=0.3)
    assert time.perf_counter() - start < 5


def test_the_embedded_layout_ends_in_time() -> None:
    edges = "".join(f"n{at} -> n{at * 7919 % 3000} [id=e{at}, label=x];" for at in range(20_000))
    layout.lay_out("digraph { a }")  # compiles the embedded layout
    start = time.perf_counter()
    with pytest.raises(RenderError, match=r"did not end within 0\.5 s; draw fewer states"):
        layout.lay_out(f"digraph {{ {edges} }}", seconds=0.5)
    assert time.perf_counter() - start < 5
    assert layout.lay_out("digraph { a }").nodes


def test_text_that_is_no_dot_is_said() -> None:
    with pytest.raises(RenderError, match="could not read the picture"):
        layout.lay_out("digraph {")


def test_another_engine_is_a_slip() -> None:
    with pytest.raises(ValueError, match='"embedded" or "dot", got'):
        layout.lay_out("digraph {}", engine="neato")


def test_to_svg_draws_eight_states_unless_more_are_asked_for() -> None:
    stored = large(12, 40)
    assert "8 of 12 states" in stored.to_svg()
    assert "8 of 12 states" not in stored.to_svg(n_states=12)


def test_to_svg_writes_the_file_and_gives_the_text(tmp_path: Path) -> None:
    text = loop().to_svg(tmp_path / "loop.svg")
    assert (tmp_path / "loop.svg").read_text(encoding="utf-8") == text == loop().to_svg()


@pytest.mark.dot
@pytest.mark.skipif(not shutil.which("dot"), reason="needs Graphviz")
@pytest.mark.parametrize("make", [html_system, loop, hostile])
def test_the_system_dot_gives_a_picture_too(make: Any) -> None:
    picture = automaton_svg(make(), engine="dot")
    assert picture.notes == ()
    assert len(texts(ET.fromstring(picture.text))) == len(
        texts(ET.fromstring(automaton_svg(make()).text))
    )


@pytest.mark.dot
@pytest.mark.skipif(not shutil.which("dot"), reason="needs Graphviz")
def test_the_system_dot_draws_hostile_text_as_it_is() -> None:
    root = ET.fromstring(layout.run_dot(automaton_dot(hostile()), "svg"))
    joined = "".join(texts(root)).replace("\u00a0", " ")
    for token in HOSTILE:
        shown = lettering.cut_cells(lettering.shown_token(token), cards.RIGHT_CELLS)
        assert shown in joined
