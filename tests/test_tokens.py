"""The printable form of a token shows everything, hides nothing and can be undone."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sae_core.tokens import Window, token_bytes, token_str, windows_of

INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe0f\u200b\u200d\u2060\ufeff\u00ad"
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"

ANY = st.binary(max_size=30) | st.text(max_size=20).map(
    lambda text: text.encode(errors="surrogatepass")
)


@given(ANY)
@example(b"\\u{41}")
@example(b"\\x41")
@example("\\\U000e0041\u0301".encode())
def test_the_printable_form_of_any_bytes_can_be_undone(data: bytes) -> None:
    assert token_bytes(token_str(data)) == data


@given(ANY)
@example((INVISIBLE + BIDI).encode())
def test_nothing_invisible_is_printed(data: bytes) -> None:
    text = token_str(data)
    for char in text:
        category = unicodedata.category(char)
        assert char == " " or category[0] not in "CZ"
        assert char not in INVISIBLE + BIDI
    text.encode()  # no lone surrogate either


@pytest.mark.parametrize(
    "char", [*INVISIBLE, *BIDI, "\x00", "\x1b", "\r", "\x7f", "\x9b", "\u2028"]
)
def test_a_character_that_draws_nothing_is_escaped(char: str) -> None:
    assert token_str(char.encode()) == f"\\u{{{ord(char):x}}}"


@pytest.mark.parametrize(
    ("data", "printed"),
    [
        (b" href", " href"),
        (b"\n\t\\", "\\n\\t\\\\"),
        (b"\xe0\xae", "\\xe0\\xae"),
        ("\u0ba3".encode(), "\u0ba3"),
        ("\u00a0".encode(), "\\u{a0}"),  # a no-break space is no space
        ("\u0301".encode(), "\\u{301}"),  # an accent with nothing to stand on
        ("e\u0301".encode(), "e\u0301"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),  # a surrogate is no character in UTF-8
        (b"", ""),
    ],
)
def test_printable_forms_are_those_of_the_interface(data: bytes, printed: str) -> None:
    assert token_str(data) == printed


@given(ANY, ANY)
def test_two_tokens_never_print_alike(a: bytes, b: bytes) -> None:
    assert (token_str(a) == token_str(b)) == (a == b)


@pytest.mark.parametrize("text", ["\\q", "\\", "a\\", "\\u{}", "\\x4", "\\u{ZZ}"])
def test_a_backslash_that_starts_no_escape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a backslash is written"):
        token_bytes(text)


@pytest.mark.parametrize("text", ["\\u{110000}", "\\u{ffffff}", "\\u{d800}"])
def test_an_escape_of_no_character_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\\|surrogates|range"):
        token_bytes(text)


@given(st.integers(0, 200), st.integers(1, 20), st.integers(1, 20), st.integers(0, 19))
def test_windows_record_every_token_once(n: int, first: int, n_ctx: int, warm_up: int) -> None:
    warm_up = min(warm_up, n_ctx - 1)
    windows = windows_of(n, n_first=first, n_ctx=n_ctx, warm_up=warm_up)
    recorded = [p for window in windows for p in range(window.record, window.end)]
    assert recorded == list(range(n))
    assert all(window.end - window.start <= max(first, n_ctx) for window in windows)
    assert all(window.record - window.start <= warm_up for window in windows)


def test_a_document_that_fits_is_one_window() -> None:
    assert windows_of(4, n_first=4, n_ctx=5, warm_up=2) == [Window(0, 0, 4)]
    assert windows_of(0, n_first=4, n_ctx=5, warm_up=2) == []


@pytest.mark.parametrize("warm_up", [-1, 5])
def test_a_warm_up_that_leaves_no_room_is_refused(warm_up: int) -> None:
    with pytest.raises(ValueError, match=rf"warm_up must be in 0\.\.4 tokens, got {warm_up}"):
        windows_of(9, n_first=5, n_ctx=5, warm_up=warm_up)
