"""Text as it is drawn: what is shown for a token, how wide it is, where it is cut.

Widths come from tables, not from a font: the same everywhere, and sane where a font is missing.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from sae_core.tokens import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

MONO_EM = 0.602  # width of a character of the common monospace fonts, in em
SPACE = "\u2423"
PART = "\u00a0\u00a0"  # between the tokens of a label; common spaces would be joined into one
ELLIPSIS = "\u2026"
OTHER_SCRIPTS = 0x590  # from here on fonts are often missing, and wide
_NARROW = frozenset("!'(),./:;I[]`fijlrt|")
_BROAD = frozenset("#%&+<=>@DGHMNOQUWmw^~")


def shown_token(text: str) -> str:
    r"""Give a token as it is drawn: each space as U+2423.

    Example:
        >>> shown_token(" <")
        '␣<'
    """
    return visible(text).replace(" ", SPACE)


def shown_label(text: str) -> str:
    """Give a label as it is drawn.

    Two spaces in a row part the tokens of a label; spaces beyond them, and at its ends, belong to a
    token and become U+2423; a single one between words stays.

    Example:
        >>> shown_label(" <  </   <").replace(chr(0xA0), "_")
        '␣<__</__␣<'
    """

    def spaces(run: re.Match[str]) -> str:
        n_spaces, at_end = len(run[0]), run.end() == len(text) or run.start() == 0
        if at_end:
            return SPACE * n_spaces
        return " " if n_spaces == 1 else PART + SPACE * (n_spaces - 2)

    return visible(re.sub(" +", spaces, text))


def n_cells(text: str) -> float:
    """Measure text in monospace characters: wide ones count 2, marks 0, other scripts 1.6."""
    return sum(_cells_of(char) for char in text)


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Measure proportional text in pixels, at the widest common sans-serif font."""
    ems = 0.0
    for char in text:
        if ord(char) < OTHER_SCRIPTS:
            ems += 0.38 if char in _NARROW else 0.84 if char in _BROAD else 0.63
        else:
            ems += _cells_of(char) * 0.62
    return ems * size * (1.1 if bold else 1.0)


def cut_cells(text: str, cells: float, *, keep_end: bool = False) -> str:
    """Cut text to a number of monospace characters, an ellipsis in place of what is cut."""
    if n_cells(text) <= cells:
        return text
    kept, used = "", 1.0
    for char in reversed(text) if keep_end else text:
        used += _cells_of(char)
        if used > cells:
            break
        kept += char
    return ELLIPSIS + kept[::-1] if keep_end else kept + ELLIPSIS


def cut_width(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """Cut proportional text to a width in pixels, an ellipsis in place of what is cut."""
    if text_width(text, size, bold=bold) <= width:
        return text
    kept, room = "", width - text_width(ELLIPSIS, size, bold=bold)
    for char in text:
        room -= text_width(char, size, bold=bold)
        if room < 0:
            break
        kept += char
    return kept + ELLIPSIS


def wrapped(parts: Iterable[str], width: float, size: float, *, gap: str = " ") -> list[str]:
    """Set parts of proportional text in lines of a width in pixels; no part is broken, but cut.

    Example:
        >>> wrapped(["one", "two", "three"], 60, 10)
        ['one two', 'three']
    """
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}{gap}{part}" if lines else part
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return [cut_width(line, width, size) for line in lines]


def percent(probability: float) -> str:
    """Write a probability as a person would.

    Example:
        >>> percent(0.234).replace(chr(0x202F), " "), percent(0.004).replace(chr(0x202F), " ")
        ('23 %', '<1 %')
    """
    if 0 < probability < 0.005:
        return "<1\u202f%"
    return f"{probability * 100:.0f}\u202f%"


def _cells_of(char: str) -> float:
    if ord(char) < 0x300:
        return 1.0
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0.0
    if unicodedata.east_asian_width(char) in ("W", "F"):
        return 2.0
    return 1.0 if ord(char) < OTHER_SCRIPTS or 0x1E00 <= ord(char) < 0x2E00 else 1.6
