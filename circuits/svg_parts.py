"""The parts of a picture: cards, arrows and their words, as SVG elements.

Each token of an example is a text of its own over a shaded box, stretched to its measured width, so
that boxes and text agree with any font. Light colours are attributes, which every viewer knows; the
classes let a style sheet replace them on dark paper.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from circuits import cards, lettering, palette
from circuits.dot import pen_width

if TYPE_CHECKING:
    from circuits.cards import Arrow, Card, Drawing, Piece
    from circuits.layout import Curve, Point

MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace, sans-serif"
INKS = palette.INKS["light"]
TITLE_BASELINE = 21.5
FEATURES_BASELINE = 35.5
TOKEN_BASELINE = 11.7
TOKEN_BOX = 14.0
LABEL_LINE = 13.0
LABEL_GAP = 5.0  # between an arrow and its words
_CELL = lettering.MONO_EM * cards.TOKEN_SIZE
_PLAIN = frozenset((lettering.ELLIPSIS, lettering.SPACE))


class Box(NamedTuple):
    """A rectangle in pixels, y down."""

    left: float
    top: float
    right: float
    bottom: float


def number(value: float) -> str:
    """Write a number of pixels with at most one decimal.

    Example:
        >>> number(2.04), number(-0.01), number(3.26)
        ('2', '0', '3.3')
    """
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")


def element(tag: str, *inside: str, **attributes: object) -> str:
    """Give an element; attribute names have `_` for `-`, numbers are pixels, text is escaped.

    Args:
        tag: the element's name.
        *inside: elements and escaped text.
        **attributes: those that are None are left out.
    """
    head = tag
    for name, value in attributes.items():
        if value is not None:
            text = number(value) if isinstance(value, float) else str(value)
            head += f" {name.rstrip('_').replace('_', '-')}={quoteattr(text)}"
    return f"<{head}>{''.join(inside)}</{tag}>" if inside else f"<{head}/>"


def words(
    text: str, x: float, y: float, *, size: float, ink: str = "ink", **attributes: object
) -> str:
    """Give a line of text.

    Args:
        text: as it is shown.
        x: where it starts, in pixels.
        y: its baseline.
        size: height of the font in pixels.
        ink: "ink" or "soft".
        **attributes: as in `element`; `textLength` stretches the text to a width.
    """
    if attributes.get("textLength") is not None:
        attributes["lengthAdjust"] = "spacingAndGlyphs"
    fill = INKS.ink if ink == "ink" else INKS.soft
    return element(
        "text",
        escape(text),
        class_=f"sa-{ink}",
        x=float(x),
        y=float(y),
        fill=fill,
        font_size=float(size),
        **attributes,
    )


def draw_arrow(arrow: Arrow, curve: Curve) -> str:
    """Draw an arrow; width and darkness grow with its probability."""
    level = palette.level(arrow.probability)
    pen = pen_width(arrow.probability)
    start, *rest = curve.points
    path = f"M{_at(start)}C" + " ".join(map(_at, rest))
    colour = INKS.levels[level]
    return element(
        "g",
        element("path", class_="sa-line", d=path, fill="none", stroke=colour, stroke_width=pen),
        element("path", class_="sa-tip", d=_tip(curve, pen), fill=colour),
        class_=f"sa-arrow sa-q{level}",
        data_source=arrow.source,
        data_target=arrow.target,
    )


def draw_card(card: Card, drawing: Drawing, middle: Point) -> str:
    """Draw a state: box and coloured edge, title, features, how often it leaves, examples."""
    width, height = drawing.card_width, drawing.card_height
    accent = palette.accent(card.order)
    edge = f"M7 .5H{number(width - 7)}"
    box = element(
        "rect",
        class_="sa-card sa-rule",
        width=width,
        height=height,
        rx=7,
        fill=INKS.card,
        stroke=INKS.rule,
    )
    return element(
        "g",
        box,
        element("path", d=edge, stroke=accent, stroke_width=3, stroke_linecap="round"),
        *_card_words(card, width, detail=height > cards.BARE_HEIGHT),
        *(_line(line, at, accent) for at, line in enumerate(card.lines)),
        class_="sa-state",
        data_state=card.state_id,
        transform=_moved(middle.x - width / 2, middle.y - height / 2),
    )


def label_size(arrow: Arrow) -> tuple[float, float]:
    """Give width and height of an arrow's words in pixels."""
    cells = max(lettering.n_cells(arrow.tokens), len(arrow.percent))
    n_lines = bool(arrow.tokens) + bool(arrow.percent)
    return cells * lettering.MONO_EM * cards.LABEL_SIZE + 2, n_lines * LABEL_LINE + 1


def label_box(arrow: Arrow, curve: Curve) -> Box | None:
    """Give the place of an arrow's words: as laid out, but moved up to the curve beside them."""
    if curve.label is None:
        return None
    width, height = label_size(arrow)
    x, y = curve.label
    left, top = x - width / 2, y - height / 2
    right, bottom = left + width, top + height
    points = curve.along()
    beside = [point.x for point in points if top <= point.y <= bottom]
    over = [point.y for point in points if left <= point.x <= right]
    if beside and max(beside) + LABEL_GAP < left:
        left = max(beside) + LABEL_GAP
    elif beside and min(beside) - LABEL_GAP > right:
        left = min(beside) - LABEL_GAP - width
    elif over and max(over) + LABEL_GAP < top:
        top = max(over) + LABEL_GAP
    elif over and min(over) - LABEL_GAP > bottom:
        top = min(over) - LABEL_GAP - height
    return Box(left, top, left + width, top + height)


def draw_label(arrow: Arrow, curve: Curve) -> str:
    """Write an arrow's tokens and, under them, its probability, on a veil of paper."""
    box = label_box(arrow, curve)
    if box is None:
        return ""
    x, size, baseline = (box.left + box.right) / 2, cards.LABEL_SIZE, box.top + 10.5
    parts = [_veil(box)]
    if arrow.tokens:
        fit = lettering.n_cells(arrow.tokens) * lettering.MONO_EM * size
        parts.append(words(arrow.tokens, x, baseline, size=size, font_family=MONO, textLength=fit))
        baseline += LABEL_LINE
    parts.append(words(arrow.percent, x, baseline, size=size, ink="soft", font_weight=600))
    return element(
        "g",
        *parts,
        class_="sa-label",
        data_source=arrow.source,
        data_target=arrow.target,
        text_anchor="middle",
    )


def _veil(box: Box) -> str:
    return element(
        "rect",
        class_="sa-veil",
        x=box.left,
        y=box.top,
        width=box.right - box.left,
        height=box.bottom - box.top,
        rx=4,
        fill=INKS.paper,
        fill_opacity="0.85",
    )


def _at(point: Point) -> str:
    return f"{number(point.x)} {number(point.y)}"


def _moved(x: float, y: float) -> str:
    return f"translate({number(x)} {number(y)})"


def _tip(curve: Curve, pen: float) -> str:
    """Give a triangle from the curve's end to its tip, a little wider than the line."""
    end, tip = curve.points[-1], curve.tip
    dx, dy = tip.x - end.x, tip.y - end.y
    length = math.hypot(dx, dy) or 1.0
    half = 2.4 + pen * 0.8
    nx, ny = -dy / length * half, dx / length * half
    corners = ((end.x + nx, end.y + ny), (tip.x, tip.y), (end.x - nx, end.y - ny))
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in corners) + "Z"


def _card_words(card: Card, width: float, *, detail: bool) -> list[str]:
    inner = width - 2 * cards.PADDING
    x, size = cards.PADDING, cards.TITLE_SIZE
    fit = _fit(card.title, inner)
    parts = [words(card.title, x, TITLE_BASELINE, size=size, font_weight=700, textLength=fit)]
    y, size, end = FEATURES_BASELINE, cards.SMALL_SIZE, x + inner
    if detail and card.features:
        parts.append(words(card.features, x, y, size=size, ink="soft"))
    if detail and card.leaves:
        parts.append(words(card.leaves, end, y, size=size, ink="soft", text_anchor="end"))
    return parts


def _fit(text: str, width: float) -> float | None:
    """Hold scripts whose fonts may be missing or wide to the width there is."""
    if all(ord(char) < lettering.OTHER_SCRIPTS or char in _PLAIN for char in text):
        return None
    return min(lettering.text_width(text, cards.TITLE_SIZE, bold=True), width)


def _line(line: tuple[Piece, ...], at: int, accent: str) -> str:
    """Draw an example: the shades of its tokens, then the tokens."""
    return element(
        "g",
        *(_shade(piece, accent) for piece in line),
        *(_token(piece) for piece in line),
        font_family=MONO,
        transform=_moved(cards.PADDING, cards.HEAD_HEIGHT + at * cards.LINE_HEIGHT),
    )


def _shade(piece: Piece, accent: str) -> str:
    if piece.value < cards.SHADE_FROM and not piece.is_focus:
        return ""
    return element(
        "rect",
        x=piece.column * _CELL,
        y=1,
        width=piece.cells * _CELL,
        height=TOKEN_BOX,
        rx=2,
        fill=accent,
        fill_opacity=str(palette.shade(piece.value)),
        stroke=accent if piece.is_focus else None,
    )


def _token(piece: Piece) -> str:
    return words(
        piece.text,
        piece.column * _CELL,
        TOKEN_BASELINE,
        size=cards.TOKEN_SIZE,
        ink="ink" if piece.is_focus or piece.value >= cards.SHADE_FROM else "soft",
        font_weight=700 if piece.is_focus else None,
        textLength=piece.cells * _CELL,
    )
