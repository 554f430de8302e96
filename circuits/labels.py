"""What a real parser says about each byte of a text: the ground truth that features are scored by.

- `html`: the state of html5lib's tokenizer, in groups (see `circuits.html_states`).
- `utf8`: the position of a byte within its character, and the character's length.
- `python`: the kind of token that Python's own `tokenize` puts the character in.
"""

from __future__ import annotations

import keyword
import re
import tokenize
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from circuits.html_states import HTML_GROUPS, character_widths, code_points, html_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

UTF8_GROUPS = (
    *(f"byte {at} of {length}" for length in (1, 2, 3, 4) for at in range(1, length + 1)),
    "invalid",
)
PYTHON_GROUPS = (
    "whitespace",
    "name",
    "keyword",
    "number",
    "string",
    "comment",
    "operator",
    "error",
)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True)
class Labeler:
    """One kind of ground truth."""

    names: tuple[str, ...]
    """The labels, by number."""

    label: Callable[[bytes], NDArray[np.uint8]]
    """Document -> (n_bytes,) label of each byte."""


def utf8_positions(document: bytes) -> NDArray[np.uint8]:
    r"""Give each byte's place in its character.

    Args:
        document: any bytes.

    Returns:
        (n_bytes,) index into `UTF8_GROUPS`.

    Example:
        >>> [UTF8_GROUPS[label] for label in utf8_positions(b"a\xc3\xa4\xff")]
        ['byte 1 of 1', 'byte 1 of 2', 'byte 2 of 2', 'invalid']
    """
    text = document.decode("utf-8", errors="surrogateescape")
    widths, codes = character_widths(text), code_points(text)
    ends = np.cumsum(widths)
    lengths = np.repeat(widths, widths)
    within = np.arange(len(document)) - np.repeat(ends - widths, widths)
    labels = (lengths * (lengths - 1) // 2 + within).astype(np.uint8)
    escaped = (codes >= 0xDC80) & (codes <= 0xDCFF)
    labels[np.repeat(escaped, widths)] = UTF8_GROUPS.index("invalid")
    return labels


def python_kinds(document: bytes) -> NDArray[np.uint8]:
    """Give the kind of token each byte of a Python source is in.

    Args:
        document: any bytes; what follows a point where `tokenize` gives up is `error`.

    Returns:
        (n_bytes,) index into `PYTHON_GROUPS`.

    Example:
        >>> "".join(PYTHON_GROUPS[label][0] for label in python_kinds(b"if x: y = 'a'  # b"))
        'kkwnownwowssswwccc'
    """
    text = document.decode("utf-8", errors="surrogateescape")
    lines = _LINE.findall(text)
    starts = np.cumsum([0, *map(len, lines)]).tolist()
    labels = np.zeros(len(text), dtype=np.uint8)
    read = 0
    try:
        for token in _python_tokens(lines):
            first = starts[min(token.start[0] - 1, len(lines))] + token.start[1]
            read = starts[min(token.end[0] - 1, len(lines))] + token.end[1]
            labels[first:read] = PYTHON_GROUPS.index(_kind_of(token))
    except (SyntaxError, ValueError, tokenize.TokenError):
        labels[read:] = PYTHON_GROUPS.index("error")
    return np.repeat(labels, character_widths(text))


def _python_tokens(lines: list[str]) -> Iterator[tokenize.TokenInfo]:
    left = iter(lines)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the source's own style
        yield from tokenize.generate_tokens(lambda: next(left, ""))


def _kind_of(token: tokenize.TokenInfo) -> str:
    name = tokenize.tok_name[token.type]
    if name == "NAME":
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if "STRING" in name:  # STRING, FSTRING_MIDDLE, TSTRING_END, ...
        return "string"
    known = {"NUMBER": "number", "COMMENT": "comment", "OP": "operator", "ERRORTOKEN": "error"}
    if name == "ERRORTOKEN" and token.string.isspace():
        return "whitespace"
    return known.get(name, "whitespace")


LABELERS = {
    "html": Labeler(HTML_GROUPS, html_states),
    "utf8": Labeler(UTF8_GROUPS, utf8_positions),
    "python": Labeler(PYTHON_GROUPS, python_kinds),
}
