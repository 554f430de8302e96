"""PNG and PDF of a picture: by the package of the extra `pictures`, else by the system's Graphviz.

1. `vl-convert-python` draws our SVG in light colours, with the fonts of this machine and one of its
   own; it fetches nothing and writes no date.
2. It writes the objects of a PDF in another order each time; they are numbered anew in the order in
   which they are reached, so that equal pictures give equal bytes.
3. Where it is missing, Graphviz draws the DOT text.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from circuits import layout
from circuits.dot import automaton_dot
from circuits.svg import Picture, automaton_svg
from sae_core.errors import RenderError

if TYPE_CHECKING:
    from circuits.automaton import FeatureAutomaton

SCALE = 2  # pixels of a PNG for one of the SVG: sharp in print and on a dense screen
INSTALL = "pip install 'sae-automata[pictures]'"
_NAMED = re.compile(rb"(/\w+ <<\n)((?: *\S+ \d+ 0 R\n)+)(?= *>>)")  # lists whose order changes
_REFERENCE = re.compile(rb"\b(\d+) 0 R\b")


def picture_bytes(
    automaton: FeatureAutomaton, output: str, *, engine: str = "embedded"
) -> tuple[bytes, tuple[str, ...]]:
    """Draw an automaton as PNG or PDF.

    Args:
        automaton: what to draw.
        output: "png" or "pdf".
        engine: layout, as in `circuits.svg`.

    Returns:
        The file's bytes, the same each time on one machine; and what the user should know.

    Raises:
        RenderError: the format is another, or neither the extra nor Graphviz is there.
    """
    if output not in ("png", "pdf"):
        raise RenderError(f"pictures are svg, html, dot, png or pdf, not {output!r}")
    try:
        import vl_convert  # noqa: F401, PLC0415 - an extra, and large
    except ImportError:
        return _by_graphviz(automaton, output), ()
    picture = automaton_svg(automaton, engine=engine)
    return _converted(picture, output), picture.notes


def ordered_pdf(pdf: bytes) -> bytes:
    """Number the objects of a PDF in the order in which they are reached from its trailer.

    Args:
        pdf: with one plain table of its objects; any other is left as it is.

    Returns:
        The same PDF; objects, and lists of fonts and opacities, stand in one order.
    """
    bodies = _objects(pdf)
    trailer = pdf[pdf.rfind(b"trailer\n") : pdf.rfind(b"startxref")]
    order: list[int] = []
    waiting = _references(trailer)[::-1]
    while waiting:
        number = waiting.pop()
        if number in bodies and number not in order:
            order.append(number)
            waiting += _references(bodies[number][0])[::-1]
    if not order or len(order) != len(bodies):
        return pdf
    new = {number: at for at, number in enumerate(order, start=1)}
    written = pdf[: pdf.index(b" 0 obj\n")].rpartition(b"\n")[0] + b"\n"
    starts = []
    for number in order:
        head, stream = bodies[number]
        starts.append(len(written))
        written += b"%d 0 obj\n" % new[number] + _renumbered(head, new) + stream + b"\nendobj\n\n"
    table = b"".join(b"%010d 00000 n\r\n" % start for start in starts)
    head = b"xref\n0 %d\n0000000000 65535 f\r\n" % (len(order) + 1)
    tail = b"startxref\n%d\n%%%%EOF" % len(written)
    return written + head + table + _renumbered(trailer, new) + tail


def _by_graphviz(automaton: FeatureAutomaton, output: str) -> bytes:
    try:
        return layout.run_dot(automaton_dot(automaton), output)
    except RenderError as err:
        raise RenderError(
            f"{output} needs one more package: {INSTALL} (or Graphviz, but: {err}); svg needs none"
        ) from err


def _converted(picture: Picture, output: str) -> bytes:
    import vl_convert  # noqa: PLC0415 - an extra, and large

    try:
        if output == "png":
            return bytes(vl_convert.svg_to_png(picture.text, scale=SCALE))
        return ordered_pdf(bytes(vl_convert.svg_to_pdf(picture.text)))
    except ValueError as err:
        raise RenderError(f"the picture could not be converted to {output}: {err}") from err


def _objects(pdf: bytes) -> dict[int, tuple[bytes, bytes]]:
    """Read the objects of a PDF by its table: each one's text and, where it has one, its stream."""
    table = pdf.rfind(b"xref\n0 ")
    starts = sorted(map(int, re.findall(rb"(\d{10}) 00000 n\r\n", pdf[table:])))
    found = {}
    for start, end in pairwise([*starts, table]):
        name, _, body = pdf[start:end].partition(b" 0 obj\n")
        head, mark, stream = body[: body.rfind(b"\nendobj")].partition(b"\nstream\n")
        if not name.isdigit():
            return {}
        ordered = _NAMED.sub(lambda found: found[1] + _sorted_lines(found[2]), head)
        found[int(name)] = (ordered, mark + stream)
    return found


def _sorted_lines(text: bytes) -> bytes:
    return b"".join(sorted(text.splitlines(keepends=True)))


def _references(text: bytes) -> list[int]:
    return list(map(int, _REFERENCE.findall(text)))


def _renumbered(text: bytes, new: dict[int, int]) -> bytes:
    return _REFERENCE.sub(lambda found: b"%d 0 R" % new[int(found[1])], text)
