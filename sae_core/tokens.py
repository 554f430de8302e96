r"""Tokens: bytes <-> printable strings, and documents cut into windows.

A token is bytes. Its printable form keeps what a person can read and escapes the rest, reversibly:
`\n`, `\t`, `\\`, `\u{202e}` for control, bidi and invisible characters, `\xd8` for bytes that are
no character alone. A space stays a space.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_NAMED = {"\n": "\\n", "\t": "\\t", "\\": "\\\\"}
_NAMED_BACK = {"n": b"\n", "t": b"\t", "\\": b"\\"}
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-f]{1,6})\}|x([0-9a-f]{2})|(.))", re.DOTALL)
# Letters and marks that draw nothing: fillers, joiners, variation selectors, the blank Braille cell.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | frozenset(
    chr(code) for code in range(0xFE00, 0xFE10)
)
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_HIDDEN_CATEGORIES = _UNSEEN | {"Zs"}


def token_str(token: bytes) -> str:
    r"""Give the printable, reversible form of a token's bytes.

    Args:
        token: the bytes the token stands for; any bytes.

    Returns:
        Text without control, bidi or invisible characters.

    Example:
        >>> token_str(b'="') + token_str(b"\n") + token_str(b"\xe0\xae")
        '="\\n\\xe0\\xae'
    """
    text = token.decode("utf-8", errors="surrogateescape")
    return "".join(_printable(char, first=at == 0) for at, char in enumerate(text))


def token_bytes(text: str) -> bytes:
    r"""Give the bytes that `token_str` printed as `text`.

    Raises:
        ValueError: `text` holds a backslash that starts no escape of `token_str`.

    Example:
        >>> token_bytes("\\xe0\\n<") == b"\xe0\n<"
        True
    """
    parts: list[bytes] = []
    done = 0
    for match in _ESCAPE.finditer(text):
        parts.append(text[done : match.start()].encode())
        parts.append(_escaped_bytes(match, text))
        done = match.end()
    if "\\" in text[done:]:
        raise ValueError(f"{text!r} ends in a lone backslash; a backslash is written \\\\")
    parts.append(text[done:].encode())
    return b"".join(parts)


def visible(text: str) -> str:
    r"""Give text with characters that draw nothing, or are not legal in XML, written as escapes.

    Example:
        >>> visible("a\0b <i> \u202e")
        'a\\u{0}b <i> \\u{202e}'
    """
    return "".join(
        f"\\u{{{ord(char):x}}}" if unicodedata.category(char) in _UNSEEN else char for char in text
    )


class Window(NamedTuple):
    """A stretch of one document's tokens that the model reads at once."""

    start: int
    """First token read."""

    record: int
    """First token recorded; those before it are warm-up."""

    end: int
    """One past the last token read and recorded."""


def windows_of(n_tokens: int, *, n_first: int, n_ctx: int, warm_up: int) -> list[Window]:
    """Cut a document into windows, each of whose tokens is recorded exactly once.

    Args:
        n_tokens: tokens of the document.
        n_first: tokens that fit the first window (n_ctx, less one when a start token is put in front).
        n_ctx: tokens that fit any later window.
        warm_up: tokens read again at the start of a later window, 0 <= warm_up < n_ctx.

    Returns:
        Windows in text order.

    Example:
        >>> windows_of(10, n_first=4, n_ctx=5, warm_up=2)
        [Window(start=0, record=0, end=4), Window(start=2, record=4, end=7), Window(start=5, record=7, end=10)]
    """
    if not 0 <= warm_up < n_ctx:
        raise ValueError(f"warm_up must be in 0..{n_ctx - 1} tokens, got {warm_up}")
    windows = [Window(0, 0, min(n_first, n_tokens))] if n_tokens else []
    while windows and windows[-1].end < n_tokens:
        record = windows[-1].end
        start = max(0, record - warm_up)
        windows.append(Window(start, record, min(start + n_ctx, n_tokens)))
    return windows


def _printable(char: str, *, first: bool) -> str:
    if char in _NAMED:
        return _NAMED[char]
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is no character
        return f"\\x{code - 0xDC00:02x}"
    category = unicodedata.category(char)
    hidden = category in _HIDDEN_CATEGORIES and char != " "
    if hidden or char in _BLANK or (first and category in ("Mn", "Me")):
        return f"\\u{{{code:x}}}"
    return char


def _escaped_bytes(match: re.Match[str], text: str) -> bytes:
    code, byte, char = match.groups()
    if code is not None:
        return chr(int(code, 16)).encode()
    if byte is not None:
        return bytes([int(byte, 16)])
    if char not in _NAMED_BACK:
        raise ValueError(
            f"{text!r} holds \\{char}, which is no escape; a backslash is written \\\\"
        )
    return _NAMED_BACK[char]
