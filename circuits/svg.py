"""SVG of an automaton: Graphviz gives the places, the cards and words are drawn here.

1. Plan what is drawn (`cards`), lay out its sizes left to right and top to bottom (`dot`, `layout`)
   and take the layout with the calmer shape.
2. Draw arrows, then cards, then the words of arrows (`svg_parts`), below a title, above the scores.
3. The picture holds no script, no link and no font; light colours are attributes, dark ones a
   style sheet under `prefers-color-scheme`. Text stays text.
"""

from __future__ import annotations

import functools
import importlib.resources
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

from circuits import cards, layout, lettering
from circuits.dot import layout_dot
from circuits.layout import Point
from circuits.svg_parts import (
    INKS,
    Box,
    draw_arrow,
    draw_card,
    draw_label,
    element,
    label_box,
    number,
    words,
)
from sae_core.errors import RenderError

if TYPE_CHECKING:
    from circuits.automaton import FeatureAutomaton
    from circuits.cards import Drawing
    from circuits.dot import Direction
    from circuits.layout import Curve, Layout

MARGIN = 22.0
TITLE_HEIGHT = 46.0
TITLE_SIZE = 17.0
FOOTER_LINE = 15.0
FOOTER_SIZE = 10.0
SCALE = 1.25  # the small print of a card is then about 12 pixels high
MIN_WIDTH = 430.0  # of a picture with words below it
MAX_TITLE = 900.0  # a longer title is cut
MAX_WIDTH = 1600.0  # a wider picture is shown smaller; it stays sharp
GOOD_ASPECT = 1.5  # width / height that suits a page and a screen
LEGEND = (
    "Card: a state, its features (F), and text, shaded by activation, outlined where the state is"
    f" current. Arrow: next tokens, their probability. {lettering.SPACE}: space."
)
# A converter knows no system-ui, and sets a line in any font when its own lacks one character.
SANS = "system-ui, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"


class Picture(NamedTuple):
    """A drawn automaton."""

    text: str
    """The SVG document."""

    notes: tuple[str, ...]
    """What the user should know, such as another engine than asked for."""


def automaton_svg(
    automaton: FeatureAutomaton,
    *,
    engine: str = "embedded",
    detail: bool = True,
    standalone: bool = True,
) -> Picture:
    """Draw an automaton.

    Args:
        automaton: states and transitions.
        engine: "embedded", or "dot" for the system's Graphviz, where it works.
        detail: with examples, words and scores; without them, a thumbnail.
        standalone: with title, scores and the style sheet of dark paper; a page says these itself.

    Returns:
        The SVG text; equal automata and engines give equal text.

    Raises:
        RenderError: the automaton cannot be laid out in the time there is.
    """
    drawing = cards.plan(automaton, detail=detail)
    directions: tuple[Direction, ...] = ("LR", "TB")
    places = [
        layout.lay_out(layout_dot(drawing, direction=direction), engine=engine)
        for direction in directions
    ]
    best = min(places, key=lambda place: _unrest(drawing, place))
    notes = tuple(dict.fromkeys(note for place in places for note in place.notes))
    return Picture(_document(drawing, best, standalone=standalone and detail, detail=detail), notes)


@functools.cache
def style_sheet() -> str:
    """Give the style sheet of pictures: their colours on dark paper."""
    return (importlib.resources.files("circuits") / "picture.css").read_text(encoding="utf-8")


def _unrest(drawing: Drawing, place: Layout) -> float:
    """Rate a layout: the height of a frame of `GOOD_ASPECT` that holds it; less is better."""
    box = _bounds(drawing, place)
    width, height = box.right - box.left, box.bottom - box.top
    return max(width / GOOD_ASPECT, height)


def _bounds(drawing: Drawing, place: Layout) -> Box:
    """Give the smallest rectangle around all cards, curves and labels."""
    half_width, half_height = drawing.card_width / 2, drawing.card_height / 2
    boxes = []
    for card in drawing.cards:
        x, y = _node(place, card.state_id)
        boxes.append(Box(x - half_width, y - half_height, x + half_width, y + half_height))
    for at, arrow in enumerate(drawing.arrows):
        curve = _curve(place, at)
        boxes += (Box(x - 2, y - 2, x + 2, y + 2) for x, y in curve.along())
        label = label_box(arrow, curve)
        boxes += [label] if label else []
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


def _node(place: Layout, state_id: int) -> Point:
    try:
        return place.nodes[f"s{state_id}"]
    except KeyError:
        raise RenderError(f"Graphviz placed no state {state_id}; draw with `embedded`") from None


def _curve(place: Layout, at: int) -> Curve:
    try:
        return place.curves[f"t{at}"]
    except KeyError:
        raise RenderError(f"Graphviz placed no arrow {at}; draw with `embedded`") from None


def _document(drawing: Drawing, place: Layout, *, standalone: bool, detail: bool) -> str:
    box = _bounds(drawing, place)
    inner = box.right - box.left
    if standalone:
        title = lettering.text_width(drawing.title, TITLE_SIZE, bold=True)
        inner = max(inner, MIN_WIDTH, min(title, MAX_TITLE))
    footer = _footer(drawing, inner, standalone=standalone)
    head = TITLE_HEIGHT if standalone else 0.0
    margin = MARGIN if detail else 8.0
    foot = FOOTER_LINE * len(footer) + (8.0 if footer else 0.0)
    width = inner + 2 * margin
    height = box.bottom - box.top + head + foot + 2 * margin
    shift = Point(margin - box.left + (inner - (box.right - box.left)) / 2, margin + head - box.top)
    return "\n".join(
        [
            *_opening(drawing, width, height, detail=detail),
            *([f"<style>{style_sheet()}</style>"] if standalone else ()),
            element("rect", class_="sa-paper", width=width, height=height, fill=INKS.paper),
            *(_heading(drawing, inner, margin) if standalone else ()),
            f'<g transform="translate({number(shift.x)} {number(shift.y)})">',
            *(draw_arrow(arrow, _curve(place, at)) for at, arrow in enumerate(drawing.arrows)),
            *(draw_card(card, drawing, _node(place, card.state_id)) for card in drawing.cards),
            *(draw_label(arrow, _curve(place, at)) for at, arrow in enumerate(drawing.arrows)),
            "</g>",
            *_footing(footer, margin, height - margin - foot + 20.0),
            "</svg>\n",
        ]
    )


def _opening(drawing: Drawing, width: float, height: float, *, detail: bool) -> list[str]:
    scale = min(SCALE if detail else 1.0, MAX_WIDTH / width)
    mark = drawing.name if detail else f"{drawing.name}-small"
    return [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="sa-automaton" role="img"'
            f' width="{number(width * scale)}" height="{number(height * scale)}"'
            f' viewBox="0 0 {number(width)} {number(height)}" aria-labelledby="{mark}-t {mark}-d"'
            f' font-family="{SANS}">'
        ),
        f'<title id="{mark}-t">{escape(drawing.title)}</title>',
        f'<desc id="{mark}-d">{escape(drawing.description)}</desc>',
    ]


def _heading(drawing: Drawing, inner: float, margin: float) -> list[str]:
    title = lettering.cut_width(drawing.title, inner, TITLE_SIZE, bold=True)
    return [
        words(title, margin, margin + 13, size=TITLE_SIZE, font_weight=700),
        words(drawing.kind, margin, margin + 30, size=11.0, ink="soft"),
    ]


def _footer(drawing: Drawing, width: float, *, standalone: bool) -> list[str]:
    """Give the lines below a picture: scores, what is not drawn, and how to read it."""
    lines = [
        line
        for note in drawing.hidden
        for line in lettering.wrapped(note.split(), width, FOOTER_SIZE)
    ]
    if standalone:
        scores = lettering.wrapped(drawing.scores, width, FOOTER_SIZE, gap=cards.GAP)
        lines = [*scores, *lines, *lettering.wrapped(LEGEND.split(), width, FOOTER_SIZE)]
    return lines


def _footing(lines: list[str], margin: float, top: float) -> list[str]:
    return [
        words(line, margin, top + at * FOOTER_LINE, size=FOOTER_SIZE, ink="soft")
        for at, line in enumerate(lines)
    ]
