"""Families of text: proxies are the best of all strings, and patterns mark what they should."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from figures.family_masks import PATTERN_FAMILIES, FamilyText, byte_masks, label_tokens
from figures.family_proxies import SOURCES, best_scores, token_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES = [bytes([byte]) for byte in range(256)]
BLOB = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
N_COPIES = 60  # of a document, so that its script has tokens enough


def made_text(
    *documents: tuple[str, str, list[bytes]], vocabulary: list[bytes], copies: int = 1
) -> FamilyText:
    """Documents of (family, source, tokens), one after the other, `copies` times."""
    number = {token: at for at, token in enumerate(vocabulary)}
    rows = [row for _ in range(copies) for row in documents]
    frame = pl.DataFrame(
        {
            "family": [family for family, _, _ in rows],
            "package": [source.split("/")[0] for _, source, _ in rows],
            "source": [source for _, source, _ in rows],
            "text": [b"".join(tokens) for _, _, tokens in rows],
            "half": [at % 2 for at in range(len(rows))],
        }
    )
    sizes = [len(tokens) for _, _, tokens in rows]
    ends = [np.cumsum([len(token) for token in tokens]) for _, _, tokens in rows]
    ids = [number[token] for _, _, tokens in rows for token in tokens]
    starts = np.cumsum([0, *sizes]).astype(np.int64)
    return FamilyText(frame, starts, np.array(ids, np.int64), np.concatenate(ends))


def labelled(text: FamilyText, vocabulary: list[bytes], name: str, kind: str) -> list[int]:
    """Give the truth of the first document for a family, a 0 or 1 a token."""
    found = label_tokens(text, vocabulary)
    (at,) = [
        at for at, family in enumerate(found.families) if (family.name, family.kind) == (name, kind)
    ]
    return found.truth[at, : text.starts[1]].astype(int).tolist()


def marked(document: str, name: str, family: str) -> str:
    """Give a document with a dot for each byte that a pattern does not mark."""
    (at,) = [at for at, one in enumerate(PATTERN_FAMILIES) if one.name == name]
    mask = byte_masks(document.encode(), family)[at]
    return "".join(char if yes else "." for char, yes in zip(document, mask, strict=True))


@given(
    st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_the_best_score_is_that_of_the_best_stretch_of_the_document(
    documents: list[list[int]], least: int
) -> None:
    expected = [
        max((sum(scores[begin:end]) for begin in range(end - least + 1)), default=-np.inf)
        for scores in documents
        for end in range(1, len(scores) + 1)
    ]
    starts = np.cumsum([0, *map(len, documents)])
    scores: NDArray[np.float64] = np.concatenate(documents).astype(np.float64)
    np.testing.assert_array_equal(best_scores(scores, starts, least=least), expected)


def test_a_run_of_base64_outlives_a_line_break_and_ends_at_a_word() -> None:
    vocabulary = [b" the", b"name", b"\n", b"aG", b"filler"]
    scores = token_scores(SOURCES[0], vocabulary, np.array([100, 100, 50, 1, 10_000]))
    words = [0, 1, *[3] * 30, 2, 3, 0, 1]
    best = best_scores(scores[words], np.array([0, len(words)]), least=1)
    assert (best > 0).tolist() == [False] * 2 + [True] * 32 + [False] * 2


def test_dna_takes_two_tokens_at_a_time() -> None:
    vocabulary = [b"cat", b"gg", b" is"]
    scores = token_scores(SOURCES[1], vocabulary, np.array([1, 1, 998]))
    words = [0, 2, 0, 1, 0]  # cat is cat gg cat
    best = best_scores(scores[words], np.array([0, 5]), least=SOURCES[1].least)
    assert (best > 0).tolist() == [False, False, False, True, True]


def test_arabic_counts_when_its_characters_are_split_into_bytes() -> None:
    tokens = [bytes([byte]) for byte in "a\u0627 \u0645".encode()]
    text = made_text(("arabic", "a/b", tokens), vocabulary=BYTES, copies=N_COPIES)
    assert labelled(text, BYTES, "Arabic", "proxy") == [0, 1, 1, 0, 1, 1]
    assert labelled(text, BYTES, "Hebrew", "proxy") == [0] * 6


def test_a_space_within_the_token_counts_against_the_script() -> None:
    vocabulary = [*BYTES, b" \xd8"]
    tokens = [b" \xd8", b"\xa7", b"\xd8", b"\xa7", b"\xd8", b"\xa7"]
    text = made_text(("arabic", "a/b", tokens), vocabulary=vocabulary, copies=N_COPIES)
    assert labelled(text, vocabulary, "Arabic", "proxy") == [0, 1, 1, 1, 1, 1]


def test_last_bytes_of_another_script_do_not_count_and_shared_first_bytes_do() -> None:
    tamil, hindi = ("\u0bae".encode(), "\u096e".encode())  # e0 ae ae and e0 a5 ae
    pieces = [[character[:1], character[1:2], character[2:]] for character in (tamil, hindi)]
    rows = [("tamil", "a/b", tokens) for tokens in reversed(pieces)]
    vocabulary = [b"\xe0", b"\xae", b"\xa5", b"zz"]
    others = [("english", "a/c", [b"zz"] * 10)]
    text = made_text(*rows, *others, vocabulary=vocabulary, copies=2 * N_COPIES)
    # Half of the e0 begin Tamil, which has 3 of 16 tokens; e0 a5 begins no Tamil.
    assert labelled(text, vocabulary, "Tamil", "proxy") == [1, 0, 0]


def test_a_script_of_few_tokens_is_not_told() -> None:
    tokens = [bytes([byte]) for byte in "\u0627".encode()]
    text = made_text(("arabic", "a/b", tokens), vocabulary=BYTES, copies=10)
    assert labelled(text, BYTES, "Arabic", "proxy") == [0, 0]


def test_a_token_has_the_pattern_that_its_last_byte_has() -> None:
    tokens = [b"x", b" MAX", b"_VAL", b"UE)", b";"]
    text = made_text(("c", "a/b", tokens), vocabulary=tokens)
    assert labelled(text, tokens, "ALL_CAPS snake case", "pattern") == [0, 1, 1, 0, 0]


def test_names_of_capitals_are_marked_whole_or_not_at_all() -> None:
    text = "a MAX_VALUE2 x_MAX_Y maxVAL_X MAX __A_B_ MAX_v"
    found = marked(text, "ALL_CAPS snake case", "c")
    assert found.replace(".", " ").split() == ["MAX_VALUE2", "__A_B_"]


def test_words_in_capitals_are_four_letters_and_no_base64() -> None:
    assert marked("NO GNU GPLX MAX_SIZE ABCD1", "words in capitals", "licence") == (
        ".......GPLX..............."
    )
    assert set(marked("ABCD EFGH", "words in capitals", "base64")) == {"."}


def test_base64_within_html_is_marked_and_nothing_around_it() -> None:
    page = f'<img class="UPPER" src="data:image/png;base64,{BLOB}=="> {"a/" * 30}'
    found = marked(page, "base64 strings", "html")
    assert found.strip(".") == f"{BLOB}=="


def test_dna_in_groups_of_ten_is_marked_and_words_are_not() -> None:
    line = "  61 gatcctccat acgtacgtaa  tagacat Gatcctcca gattaca"
    found = marked(line, "DNA letters", "dna")
    assert found.replace(".", " ").split() == ["gatcctccat", "acgtacgtaa"]


def test_the_parser_tells_the_parts_of_a_tag() -> None:
    page = "<p id=x>a > b &amp; c</p>"
    assert marked(page, "HTML tags", "html") == "<p id=x" + "." * 14 + "</p."
    assert marked(page, "HTML tag closes", "html") == ".......>................>"
    assert marked(page, "HTML tag opens", "html") == "<" + "." * 20 + "<..."
    assert marked(page, "HTML attribute names", "html").strip(".") == "id"
    assert set(marked(page, "HTML tags", "http")) == {"."}


def test_header_lines_nicknames_commands_and_decimals_hold_in_their_families() -> None:
    exchange = 'HTTP/1.1 200 OK\nServer: x\n\n{"a": 1}\n'
    assert marked(exchange, "HTTP header lines", "http").startswith("HTTP/1.1 200 OK.Server: x..")
    assert set(marked(exchange, "HTTP header lines", "c")) == {"."}
    line = "2005-01-08T23:33:54  <ann> hi <bob>\n"
    assert marked(line, "IRC nicknames", "irc").strip(".") == "<ann>"
    assert marked(r"a \emph{b} \\", "LaTeX commands", "latex") == r"..\emph......"
    assert marked("7,3.25,x.1", "decimal numbers in tables", "tables-chat") == "..3.25...."


def test_every_token_of_a_document_has_its_family_and_its_part() -> None:
    tokens = [b"a", b"b"]
    rows = [("web-code", f"libjs/x.{ending}", tokens) for ending in ("js", "json#2")]
    rows.append(("tables-chat", "gourmand/x.js", tokens))
    text = made_text(*rows, vocabulary=tokens)
    found = label_tokens(text, tokens)
    truth = {
        family.name: row.astype(int).tolist()
        for family, row in zip(found.families, found.truth, strict=True)
        if family.kind == "document"
    }
    assert truth["web-code"] == [1, 1, 1, 1, 0, 0]
    assert truth["JavaScript"] == [1, 1, 0, 0, 0, 0]
    assert truth["JSON"] == [0, 0, 1, 1, 0, 0]
    assert truth["nutrition"] == [0, 0, 0, 0, 1, 1]
    assert sum(truth["CSS"]) == sum(truth["chat"]) == 0
