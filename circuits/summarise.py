r"""Labels: a list of tokens with shares, said as a person would write it.

1. A few tokens that carry most of the mass are written out: `<`, `</`.
2. Otherwise a class that fits nearly all of it names the whole: `[0-9]+`, `[A-Z]+`, `Tamil`.
3. Otherwise the largest tokens are written, and an ellipsis.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from sae_core.tokens import token_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MANY_SHARE = 0.8  # a handful of tokens, or one class, must carry this share of the mass to name it
MAX_WRITTEN = 4  # more than four tokens on an arrow are not read
MIN_WRITTEN = 3  # fewer say nothing of a long list
ELLIPSIS = "\u2026"  # there are more
MIN_SHARE = 0.08  # a token below this share of the largest few is not worth its room

_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"[0-9]+", r" ?[0-9]+"),
    (r"[A-Z]+", r"[A-Z]{1,}"),
    ("line breaks, spaces", r"(?:\\n|\\t|\\u\{d\}| )+"),
    ("[A-Za-z0-9+/]+", r"[a-z]|(?=.*[0-9A-Z+/])[A-Za-z0-9+/]+"),
    ("bytes of split characters", r"(?:\\x[0-9a-f]{2})+"),
)
_CLASSES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern)) for name, pattern in _PATTERNS
)


def summarise(tokens: Sequence[tuple[str, float]]) -> str:
    r"""Give a short label for weighted tokens.

    Args:
        tokens: (token_str, share), largest first; the shares sum to at most 1.

    Returns:
        A label of a few words; the tokens themselves keep their exact bytes elsewhere.

    Example:
        >>> summarise([("<", 0.7), ("</", 0.25)])
        '<  </'
        >>> summarise([(str(n), 0.05) for n in range(20)])
        '[0-9]+'
    """
    total = sum(share for _, share in tokens)
    if total <= 0:
        return ""
    written = _written(tokens, total)
    if sum(share for _, share in written) >= MANY_SHARE * total:
        return "  ".join(text for text, _ in written)
    name = _class_of(tokens, total)
    if name:
        return name
    shown = max(len(written), min(MIN_WRITTEN, len(tokens)))
    return "  ".join([*(text for text, _ in tokens[:shown]), ELLIPSIS])


def _written(tokens: Sequence[tuple[str, float]], total: float) -> list[tuple[str, float]]:
    top = list(tokens[:MAX_WRITTEN])
    return [pair for at, pair in enumerate(top) if at == 0 or pair[1] >= MIN_SHARE * total]


def _class_of(tokens: Sequence[tuple[str, float]], total: float) -> str:
    tests: list[tuple[str, Callable[[str], object]]] = [
        (name, pattern.fullmatch) for name, pattern in _CLASSES
    ]
    for name, fits in tests:
        if sum(share for text, share in tokens if fits(text)) >= MANY_SHARE * total:
            return name
    mass: dict[str, float] = {}
    for text, share in tokens:
        script = _script(text)
        mass[script] = mass.get(script, 0.0) + share
    best = max(sorted(mass), key=lambda script: mass[script])
    return best if best and mass[best] >= MANY_SHARE * total else ""


def _script(text: str) -> str:
    """Name the script of a token's first letter outside ASCII: 'Tamil', 'Cjk'; '' for none."""
    try:
        chars = token_bytes(text).decode()
    except ValueError:
        return ""
    for char in chars:
        if ord(char) > 0x7F and char.isalpha():
            return unicodedata.name(char, "").split(" ")[0].split("-")[0].capitalize()
    return ""
