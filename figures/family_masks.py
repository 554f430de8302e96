"""Families of text: which tokens of held-out documents belong to each, by three kinds of rule.

1. proxy: the paper's log-likelihood ratio is above 0 (`figures.family_proxies`).
2. pattern: the token's last byte lies in a match of a regular expression, or where html5lib's tokenizer is in a certain
   state (`circuits.html_states`); some patterns hold in documents of one family only, and then no token elsewhere
   belongs.
3. document: every token of the documents of a family of the corpus, or of some of its packages or endings.

A family may have rows of several kinds, which differ: a document of base64 has HTML around it, and a page may hold
base64.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from circuits.html_states import HTML_GROUPS, HTML_TAG_GROUPS, html_states
from figures.family_proxies import (
    SCRIPTS,
    SOURCES,
    best_scores,
    open_characters,
    script_codes,
    script_truth,
    token_scores,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

PROXY, PATTERN, DOCUMENT = KINDS = ("proxy", "pattern", "document")
HTML = "html"
_WORDY = (HTML, "c", "python", "web-code", "english", "licence", "latex")


class FamilyText(NamedTuple):
    """Held-out documents as tokens."""

    documents: pl.DataFrame
    """A row a document: family, package, source, text (its bytes), half (0 or 1)."""

    starts: NDArray[np.int64]
    """(n_documents + 1,) first token of each document, and the end."""

    token_ids: NDArray[np.int64]
    """(n_tokens,) vocabulary ids, in the order of the documents."""

    byte_end: NDArray[np.int64]
    """(n_tokens,) one past the token's last byte in its document."""


@dataclass(frozen=True)
class Family:
    """What one row of the page is about."""

    name: str

    kind: str
    """One of `KINDS`."""

    rule: str
    """Which tokens belong, in words; empty where the kind says all."""


class Labels(NamedTuple):
    """Which tokens belong to which family."""

    families: tuple[Family, ...]

    truth: NDArray[np.bool_]
    """(n_families, n_tokens)."""


class Pattern(NamedTuple):
    """Bytes that a regular expression finds."""

    name: str

    expression: re.Pattern[bytes]
    """Its only group is what counts, or the whole match where it has none."""

    families: tuple[str, ...]
    """Families of documents in which it holds; none means all."""

    rule: str


class Part(NamedTuple):
    """Some documents of a family of the corpus."""

    name: str
    family: str

    column: str
    """`package` or `source`."""

    expression: str
    """A regular expression that the column contains."""


class _ScriptBytes(NamedTuple):
    """What the tokens' bytes say of scripts, see `figures.family_proxies.script_truth`."""

    whole: NDArray[np.bool_]
    """(n_scripts, n_tokens)."""

    last: NDArray[np.bool_]
    """(n_scripts, n_tokens)."""

    prefixes: NDArray[np.int64]
    """(n_tokens,)."""


PATTERNS = (
    Pattern(
        "ALL_CAPS snake case",
        re.compile(rb"(?<![A-Za-z0-9_])_*[A-Z][A-Z0-9]*(?:_+[A-Z0-9]+)+_*(?![A-Za-z0-9_])"),
        (),
        "a name of capitals and digits with `_` inside, such as `MAX_VALUE`",
    ),
    Pattern(
        "words in capitals",
        re.compile(rb"(?<![A-Za-z0-9_])[A-Z]{4,}(?![A-Za-z0-9_])"),
        _WORDY,
        "4 capitals or more, no `_`; not in base64, DNA and other scripts",
    ),
    Pattern(
        "base64 strings",
        re.compile(
            rb"(?<![A-Za-z0-9+/])(?=[a-z0-9+/]*[A-Z])(?=[A-Z0-9+/]*[a-z])(?=[A-Za-z+/]*[0-9])"
            rb"[A-Za-z0-9+/]{40,}={0,2}"
        ),
        (),
        "40 letters of the alphabet or more in a row, with capitals, small letters and digits",
    ),
    Pattern(
        "DNA letters",
        re.compile(rb"(?<![A-Za-z])(?:[acgt]{8,}|[ACGT]{8,})(?![A-Za-z])"),
        (),
        "8 of A, C, G, T or more in a row, in one case",
    ),
    Pattern(
        "HTTP header lines",
        re.compile(
            rb"^(?:[A-Z]+ \S+ HTTP/1\.[01]|HTTP/1\.[01] \d{3}[^\r\n]*|[A-Za-z][\w-]*: [^\r\n]*)",
            re.MULTILINE,
        ),
        ("http",),
        "first lines and `Name: value` lines of HTTP exchanges",
    ),
    Pattern(
        "IRC nicknames",
        re.compile(rb"^[0-9T:\[\] -]*(<[^<>\s]{1,30}>)", re.MULTILINE),
        ("irc",),
        "`<nick>` at the start of a line of a chat log, after the time",
    ),
    Pattern("LaTeX commands", re.compile(rb"\\[A-Za-z@]+"), ("latex",), "`\\` and a name"),
    Pattern(
        "decimal numbers in tables",
        re.compile(rb"\d+\.\d+"),
        ("tables-chat",),
        "digits with a point inside",
    ),
)
HTML_PATTERNS = {
    "HTML tags": HTML_TAG_GROUPS,
    "HTML tag opens": ("tagOpen",),
    "HTML end tag opens": ("endTagOpen",),
    "HTML tag names": ("tagName",),
    "HTML attribute names": ("attributeName",),
    "HTML attribute values": ("attributeValue",),
    "HTML entities": ("entity",),
    "HTML text": ("data",),
}
PARTS = (
    Part("JavaScript", "web-code", "source", r"\.js(#\d+)?$"),
    Part("CSS", "web-code", "source", r"\.css(#\d+)?$"),
    Part("JSON", "web-code", "source", r"\.json(#\d+)?$"),
    Part("tables", "tables-chat", "package", "^pydataset$"),
    Part("nutrition", "tables-chat", "package", "^gourmand$"),
    Part("chat", "tables-chat", "package", "^chatterbot-corpus$"),
)
PATTERN_FAMILIES = (
    *(Family(one.name, PATTERN, one.rule) for one in PATTERNS),
    *(
        Family(name, PATTERN, f"in HTML documents, the parser's state is {', '.join(groups)}")
        for name, groups in HTML_PATTERNS.items()
    ),
    Family("HTML tag closes", PATTERN, "in HTML documents, the `>` that ends a tag"),
)


def label_tokens(text: FamilyText, vocabulary: Sequence[bytes]) -> Labels:
    """Find the tokens of every family.

    Args:
        text: the documents.
        vocabulary: bytes of each token id.

    Returns:
        Families by kind; those of documents in the order of their names.
    """
    rows = [*_proxies(text, vocabulary), *_documents(text)]
    n_proxies = sum(family.kind == PROXY for family, _ in rows)
    families = [family for family, _ in rows]
    families[n_proxies:n_proxies] = PATTERN_FAMILIES
    parts = [truth[None] for _, truth in rows]
    parts.insert(n_proxies, _patterns(text))
    return Labels(tuple(families), np.concatenate(parts))


def byte_masks(document: bytes, family: str) -> NDArray[np.bool_]:
    """Say which bytes of a document belong to each family of the kind pattern.

    Args:
        document: its bytes.
        family: of the document, in the corpus.

    Returns:
        (n_patterns, n_bytes), in the order of `PATTERN_FAMILIES`.

    Example:
        >>> masks = byte_masks(b"x=MAX_VALUE", "c")
        >>> masks[0].astype(int).tolist()
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    masks = np.zeros((len(PATTERN_FAMILIES), len(document)), np.bool_)
    for at, pattern in enumerate(PATTERNS):
        if not pattern.families or family in pattern.families:
            for match in pattern.expression.finditer(document):
                first, end = match.span(pattern.expression.groups)
                masks[at, first:end] = True
    if family == HTML:
        masks[len(PATTERNS) :] = _html_masks(document)
    return masks


def _html_masks(document: bytes) -> NDArray[np.bool_]:
    states = html_states(document)
    groups = [[HTML_GROUPS.index(name) for name in names] for names in HTML_PATTERNS.values()]
    masks = [np.isin(states, numbers) for numbers in groups]
    is_close = np.frombuffer(document, np.uint8) == ord(">")
    is_close[1:] &= masks[0][:-1] & ~masks[0][1:]
    is_close[:1] = False
    return np.stack([*masks, is_close])


def _patterns(text: FamilyText) -> NDArray[np.bool_]:
    truth = np.zeros((len(PATTERN_FAMILIES), len(text.token_ids)), np.bool_)
    for (family, data), tokens in zip(
        text.documents.select("family", "text").iter_rows(), _slices(text), strict=True
    ):
        truth[:, tokens] = byte_masks(data, family)[:, text.byte_end[tokens] - 1]
    return truth


def _proxies(
    text: FamilyText, vocabulary: Sequence[bytes]
) -> Iterator[tuple[Family, NDArray[np.bool_]]]:
    n_seen = np.bincount(text.token_ids, minlength=len(vocabulary))
    for source in SOURCES:
        scores = token_scores(source, vocabulary, n_seen)[text.token_ids]
        rule = f"log(P(s | {source.name}) / P(s)) > 0"
        yield (
            Family(source.name, PROXY, rule),
            best_scores(scores, text.starts, least=source.least) > 0,
        )
    scripts = _script_bytes(text)
    for script, whole, last in zip(SCRIPTS, scripts.whole, scripts.last, strict=True):
        rule = f"log(P({script.name} | s) / P({script.name})) > 0"
        yield Family(script.name, PROXY, rule), script_truth(whole, last, scripts.prefixes)


def _script_bytes(text: FamilyText) -> _ScriptBytes:
    n_tokens = len(text.token_ids)
    whole, last = (np.zeros((len(SCRIPTS), n_tokens), np.bool_) for _ in range(2))
    prefixes = np.zeros(n_tokens, np.int64)
    for data, tokens in zip(text.documents["text"], _slices(text), strict=True):
        if data.isascii():
            continue
        codes, ends = script_codes(data), text.byte_end[tokens]
        begins = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        open_begins, prefixes[tokens] = open_characters(data, ends)
        until = np.maximum(begins, open_begins)
        whole[:, tokens] = until == begins
        for at in np.unique(codes[codes > 0]).tolist():
            n_inside = np.concatenate([np.zeros(1, np.int64), np.cumsum(codes == at)])
            whole[at - 1, tokens] = n_inside[until] - n_inside[begins] == until - begins
            last[at - 1, tokens] = codes[ends - 1] == at
    return _ScriptBytes(whole, last, prefixes)


def _documents(text: FamilyText) -> Iterator[tuple[Family, NDArray[np.bool_]]]:
    n_tokens = np.diff(text.starts)
    for name in sorted(text.documents["family"].unique().to_list()):
        yield (
            Family(name, DOCUMENT, ""),
            np.repeat((text.documents["family"] == name).to_numpy(), n_tokens),
        )
        for part in PARTS:
            if part.family == name:
                found = text.documents.select(
                    (pl.col("family") == name) & pl.col(part.column).str.contains(part.expression)
                )
                rule = f"those of {name} whose {part.column} matches `{part.expression}`"
                yield (
                    Family(part.name, DOCUMENT, rule),
                    np.repeat(found.to_series().to_numpy(), n_tokens),
                )


def _slices(text: FamilyText) -> list[slice]:
    """Give the tokens of each document."""
    return [
        slice(first, end)
        for first, end in zip(text.starts[:-1].tolist(), text.starts[1:].tolist(), strict=True)
    ]
