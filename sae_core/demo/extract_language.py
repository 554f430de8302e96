"""Extractors of text in other scripts: translated messages, manual pages, scripture.

Same contract as in `extract_markup`; with a script set, `extract` then keeps the
lines of that script, each once.
"""

from __future__ import annotations

import ast
import json
import re
import struct
from typing import TYPE_CHECKING, Any

from sae_core.demo.extract_markup import Extractor, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

MO_MAGIC = 0x950412DE  # GNU gettext manual, "The Format of GNU MO Files"

_MSGSTR = re.compile(r'^msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\s*)+)', re.MULTILINE)


def mo(data: bytes) -> Iterator[str]:
    """Translated strings of a compiled gettext catalogue."""
    if len(data) < 20 or struct.unpack_from("<I", data)[0] != MO_MAGIC:
        return
    n, _, table = struct.unpack_from("<III", data, 8)
    for i in range(1, n):  # entry 0 is the catalogue's header
        length, offset = struct.unpack_from("<II", data, table + 8 * i)
        yield data[offset : offset + length].split(b"\0")[0].decode("utf-8", "ignore")


def po(data: bytes) -> Iterator[str]:
    """Translated strings of a gettext source catalogue."""
    for text in plain(data):
        for match in _MSGSTR.finditer(text):
            lines = re.findall(r'"(?:[^"\\]|\\.)*"', match.group(1))
            message = "".join(ast.literal_eval(line) for line in lines)
            if "Content-Type:" not in message:  # the catalogue's header
                yield message


def json_messages(data: bytes) -> Iterator[str]:
    """Every string of a JSON file, keys and "@metadata" left out."""
    for text in plain(data):
        yield from _strings(json.loads(text))


def man_page(data: bytes) -> Iterator[str]:
    """A troff manual page without its request lines."""
    for text in plain(data):
        yield re.sub(r"(?m)^[.'].*\n?", "", text)


def morphhb(data: bytes) -> Iterator[str]:
    """Hebrew Bible: a verse a line, no morpheme marks, points or accents (U+05BE stays)."""
    for text in plain(data):
        for verse in re.findall(r"<verse .*?</verse>", text, re.DOTALL):
            words = re.findall(r"<w\b[^>]*>([^<]+)</w>", verse)
            line = " ".join(words).replace("/", "")
            yield re.sub("[\u0591-\u05bd\u05bf-\u05c7]", "", line)


def quran(data: bytes) -> Iterator[str]:
    """Verses of the Uthmani text, as they are."""
    for text in plain(data):
        yield "\n".join(re.findall(r'<aya [^>]*?text="([^"]+)"', text))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "@metadata":
                yield from _strings(item)


MESSAGE_EXTRACTORS = frozenset({"mo", "po", "json_messages"})
EXTRACTORS: dict[str, Extractor] = {
    "mo": mo,
    "po": po,
    "json_messages": json_messages,
    "man_page": man_page,
    "morphhb": morphhb,
    "quran": quran,
}
