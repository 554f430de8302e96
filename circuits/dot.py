r"""DOT text of an automaton: a pure function, the same text for the same automaton.

1. A state is a node of fixed size whose label is an HTML-like table: title, features, examples
   with shaded tokens. Graphviz itself can draw it; our picture needs only places (`layout_dot`).
2. An arrow carries its tokens and probability as a plain label; pen and colour grow with it.
3. Everything from outside is escaped for the place it stands in, so that a token such as `\N`,
   `"><svg onload=` or `{a|b}` is shown as it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from circuits import cards, palette
from circuits.lettering import n_cells

if TYPE_CHECKING:
    from circuits.automaton import FeatureAutomaton
    from circuits.cards import Arrow, Card, Drawing, Piece
    from circuits.palette import Inks, Theme

Direction = Literal["LR", "TB"]
PIXELS_PER_INCH = 72  # one unit of Graphviz's plane is one pixel of ours
LABEL_SIZE = cards.LABEL_SIZE + 1.5  # the room of a label, a little more than it fills
PEN_MIN, PEN_GAIN = 1.0, 2.4


def automaton_dot(
    automaton: FeatureAutomaton, *, theme: Theme = "light", direction: Direction = "LR"
) -> str:
    """Give the automaton as DOT text.

    Args:
        automaton: states and transitions.
        theme: colours for light or dark paper.
        direction: where time runs: left to right, or top to bottom.

    Returns:
        A digraph with a node `s<id>` a state and an edge an arrow.
    """
    return drawing_dot(cards.plan(automaton), theme=theme, direction=direction)


def drawing_dot(drawing: Drawing, *, theme: Theme = "light", direction: Direction = "LR") -> str:
    """Give a planned drawing as DOT text; see `automaton_dot`."""
    inks = palette.INKS[theme]
    scores = cards.GAP.join(drawing.scores)
    caption = "\\l".join(map(quoted_text, (drawing.title, scores, *drawing.hidden)))
    lines = [
        f"digraph {quoted(drawing.name)} {{",
        (
            f'  graph [rankdir={direction}, bgcolor="{inks.paper}", nodesep=0.5, ranksep=0.55,'
            f' fontname="Helvetica", fontsize=10, fontcolor="{inks.soft}", labeljust=l,'
            f' label="{caption}\\l"];'
        ),
        (
            f'  node [shape=none, margin=0, fixedsize=true, fontname="Helvetica",'
            f' fontcolor="{inks.ink}",'
            f" {_size(drawing)}];"
        ),
        (
            f'  edge [fontname="Courier", fontsize={LABEL_SIZE}, fontcolor="{inks.ink}",'
            " arrowsize=0.7];"
        ),
        *(f"  s{card.state_id} [label=<{_table(card, drawing, inks)}>];" for card in drawing.cards),
        *(_edge(at, arrow, inks) for at, arrow in enumerate(drawing.arrows)),
        "}",
    ]
    return "\n".join(lines) + "\n"


def layout_dot(drawing: Drawing, *, direction: Direction) -> str:
    """Give what a layout needs of a drawing and no word of it: sizes stand in for cards and labels.

    Graphviz measures characters outside ASCII by guesses; an `x` a cell, and two to keep clear of
    the arrow, are as wide as we draw.
    """
    lines = [
        "digraph {",
        f"  graph [rankdir={direction}, nodesep=0.5, ranksep=0.55];",
        f'  node [shape=box, fixedsize=true, label="", {_size(drawing)}];',
        f'  edge [fontname="Courier", fontsize={LABEL_SIZE}, arrowsize=0.7];',
        *(f"  s{card.state_id};" for card in drawing.cards),
    ]
    for at, arrow in enumerate(drawing.arrows):
        rows = (math.ceil(n_cells(arrow.tokens)), len(arrow.percent))
        room = "\\n".join("x" * (n + 2) for n in rows if n)
        lines.append(
            f'  s{arrow.source} -> s{arrow.target} [id=t{at}, label="{room}",'
            f" weight={_weight(arrow)}];"
        )
    return "\n".join([*lines, "}"]) + "\n"


def quoted(text: str) -> str:
    r"""Give text as a quoted DOT name.

    Example:
        >>> print(quoted('a "b"'))
        "a \"b\""
    """
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quoted_text(text: str) -> str:
    r"""Escape text for the inside of a quoted DOT label, where `\N` and `&lt;` have a meaning.

    Example:
        >>> print(quoted_text('\\N & "x"'))
        \\N &amp; \"x\"
    """
    return text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')


def table_text(text: str) -> str:
    r"""Escape text for an HTML-like label, where Graphviz still reads `\\N` after the entities.

    Example:
        >>> table_text('<b> & "\\N"')
        '&lt;b&gt; &amp; &quot;&#92;&#92;N&quot;'
    """
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(char, entity)
    return text.replace("\\", "&#92;&#92;")


def pen_width(probability: float) -> float:
    """Give an arrow's width in pixels."""
    return round(PEN_MIN + PEN_GAIN * probability, 2)


def _edge(at: int, arrow: Arrow, inks: Inks) -> str:
    words = "\\n".join(quoted_text(part) for part in (arrow.tokens, arrow.percent) if part)
    return (
        f'  s{arrow.source} -> s{arrow.target} [id=t{at}, label="{words}",'
        f' color="{inks.levels[palette.level(arrow.probability)]}",'
        f" penwidth={pen_width(arrow.probability)}, weight={_weight(arrow)}];"
    )


def _size(drawing: Drawing) -> str:
    width, height = drawing.card_width, drawing.card_height
    return f"width={width / PIXELS_PER_INCH:.3f}, height={height / PIXELS_PER_INCH:.3f}"


def _weight(arrow: Arrow) -> int:
    """Give the pull of an arrow on its states: probable arrows come out short and straight."""
    return 1 + round(arrow.probability * 8)


def _table(card: Card, drawing: Drawing, inks: Inks) -> str:
    """Give a card as an HTML-like table of the card's fixed size."""
    accent = palette.accent(card.order)
    rows = [
        (
            f'<TR><TD ALIGN="LEFT"><FONT POINT-SIZE="{cards.TITLE_SIZE:g}"><B>'
            f"{table_text(card.title) or ' '}</B></FONT></TD></TR>"
        ),
    ]
    small = cards.GAP.join(part for part in (card.features, card.leaves) if part)
    if drawing.card_height > cards.BARE_HEIGHT:
        rows.append(
            f'<TR><TD ALIGN="LEFT"><FONT POINT-SIZE="{cards.SMALL_SIZE:g}" COLOR="{inks.soft}">'
            f"{table_text(small) or ' '}</FONT></TD></TR>"
        )
    rows += [f'<TR><TD ALIGN="LEFT">{_line(line, accent, inks)}</TD></TR>' for line in card.lines]
    return (
        f'<TABLE BORDER="1" COLOR="{accent}" BGCOLOR="{inks.card}" STYLE="ROUNDED" CELLBORDER="0"'
        f' CELLSPACING="1" CELLPADDING="1" WIDTH="{drawing.card_width:.0f}"'
        f' HEIGHT="{drawing.card_height:.0f}">' + "".join(rows) + "</TABLE>"
    )


def _line(pieces: tuple[Piece, ...], accent: str, inks: Inks) -> str:
    """Give an example as a table of one row, a cell a token."""
    cells = []
    for piece in pieces:
        fill = ""
        if piece.value >= cards.SHADE_FROM:
            fill = f' BGCOLOR="{palette.blend(accent, inks.card, palette.shade(piece.value))}"'
        text = table_text(piece.text) or " "
        text = f"<B>{text}</B>" if piece.is_focus else text
        font = f'<FONT FACE="Courier" POINT-SIZE="{cards.TOKEN_SIZE - 1:g}">{text}</FONT>'
        cells.append(f"<TD{fill}>{font}</TD>")
    return (
        '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1"><TR>'
        + "".join(cells)
        + "</TR></TABLE>"
    )
