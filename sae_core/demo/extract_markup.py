"""Extractors of markup and source text: one file's bytes -> texts.

An extractor takes the bytes and yields texts; files that are not UTF-8 or
hold NUL bytes yield nothing. Gzip is undone before it is called.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from xml.etree import ElementTree as ET

Extractor = Callable[[bytes], Iterator[str]]

ARTICLE_TAGS = ("ArticleTitle", "AbstractText", "CoiStatement")
GUTENBERG = "Gutenberg"  # its heads and licence are the collection's, not the book's
_UNSEEN = re.compile(r"<(script|style)\b.*?</\1>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(r"</?(p|div|li|tr|h\d|title|br|td|dd|dt|pre|section)\b[^>]*>")
PROSE_PIECE_BYTES = 20_000  # a book has no documents; about one chapter


def plain(data: bytes) -> Iterator[str]:
    """The file as it is."""
    text = _decode(data)
    if text is not None:
        yield text


def html_text(data: bytes) -> Iterator[str]:
    """The words of a page, one block a line: no script, style or tags."""
    for page in plain(data):
        yield strip_tags(page)


def licence_text(data: bytes) -> Iterator[str]:
    """A licence without the YAML head between two lines of `---`."""
    for text in plain(data):
        yield re.sub(r"\A---\n.*?\n---\n+", "", text, flags=re.DOTALL)


def prose(data: bytes) -> Iterator[str]:
    """Pieces of a long book, cut at blank lines, without Project Gutenberg's notes.

    A piece that is not UTF-8 is left out, not the book: the dictionary has stray bytes.
    """
    piece: list[bytes] = []
    size = 0
    for paragraph in data.replace(b"\r\n", b"\n").split(b"\n\n"):
        piece.append(paragraph)
        size += len(paragraph)
        if size > PROSE_PIECE_BYTES:
            for text in plain(b"\n\n".join(piece) + b"\n"):
                if GUTENBERG not in text:
                    yield text
            piece, size = [], 0


def pubmed(data: bytes) -> Iterator[str]:
    """One text per article: title, abstract, conflicts of interest, grants."""
    root = ET.fromstring(data)  # noqa: S314 - a file whose checksum was compared
    for article in root.iter("PubmedArticle"):
        parts = [
            "".join(node.itertext()).strip() for tag in ARTICLE_TAGS for node in article.iter(tag)
        ]
        if len(parts) < 2:  # a title alone is not prose
            continue
        grants = article.iter("Grant")
        parts.extend(", ".join(node.text for node in grant if node.text) for grant in grants)
        yield "\n\n".join(parts) + "\n"


def strip_tags(page: str) -> str:
    r"""Text of an HTML or XML page, entities undone, blank lines dropped.

    >>> strip_tags("<p>a &amp; b</p><script>x</script><p>c</p>")
    'a & b\nc\n'
    """
    page = _UNSEEN.sub(" ", page)
    page = _BLOCK.sub("\n", page)
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
    return "".join(line + "\n" for line in lines if line)


def _decode(data: bytes) -> str | None:
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


EXTRACTORS: dict[str, Extractor] = {
    "plain": plain,
    "html_text": html_text,
    "licence_text": licence_text,
    "prose": prose,
    "pubmed": pubmed,
}
