"""Proxies of a feature's meaning: log(P(s | context) / P(s)), the best over all prefixes s that end at a token.

1. P(s) is the product of its tokens' frequencies in the text.
2. base64 and DNA: each character of s is drawn evenly from the alphabet (64 letters; A, C, G, T in either case), and
   has probability `FOREIGN` if it is not in it. So the logarithm is a sum over tokens, and the best over all s that
   end at a token is Kadane's: best[t] = score[t] + max(0, best[t - 1]), within the document. DNA takes s of two tokens
   at least, as one alone (`cat`) is ambiguous. A token is in the context where the best is above 0.
3. A script, by Bayes: log(P(script | s) / P(script)). Here s begins where a character does, as the bytes after a
   first one are shared by many scripts. P(script | s) is 1 if all characters of s are in the script's blocks, `FOREIGN`
   if any is not, spaces and punctuation too; if s ends within a character, the share, among the occurrences of these
   first bytes at a token's end, of those that begin a character of the script. No longer s has more, so the best s is
   the shortest: the characters that the token touches, up to its end. P(script) is the share of tokens of which all
   bytes are in characters of the script; with fewer than `LEAST_TOKENS` of them it is not known, and no token is in.

Source: Bricken et al. 2023, "Feature Proxies". It gives DNA's letters in capitals; the text here has them in both.
"""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from circuits.html_states import character_widths, code_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FOREIGN = 1e-10  # probability of a character that the context does not have; the paper's

LEAST_TOKENS = 200  # with fewer, P(script) is known to no better than 1 / sqrt(200) = 7 %, and stray bytes pass for it
MOST_OPEN = 3  # bytes of a character that is not whole


class Source(NamedTuple):
    """Strings whose characters are drawn evenly from an alphabet."""

    name: str

    alphabet: str
    """The characters, in every case that is read as the same."""

    n_letters: int
    """How many of them are told apart."""

    least: int
    """Tokens of a string s, at least."""


class Script(NamedTuple):
    """A script and the code points that make it."""

    name: str

    ranges: tuple[tuple[int, int], ...]
    """First and last code point of each of its blocks."""


class OpenCharacters(NamedTuple):
    """The characters within which the tokens of a document end."""

    begins: NDArray[np.int64]
    """(n_tokens,) first byte of the open character; where there is none, one past the token's last byte."""

    prefixes: NDArray[np.int64]
    """(n_tokens,) the bytes of the open character up to the token's end, as a number; 0 where there is none."""


SOURCES = (
    Source("base64", string.ascii_letters + string.digits + "+/", 64, 1),
    Source("DNA", "ACGTacgt", 4, 2),
)
SCRIPTS = (
    Script("Arabic", ((0x0600, 0x06FF), (0x0750, 0x077F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE))),
    Script("Hebrew", ((0x0590, 0x05FF),)),
    Script("Tamil", ((0x0B80, 0x0BFF),)),
    Script("Chinese", ((0x3400, 0x4DBF), (0x4E00, 0x9FFF))),
    Script("Khmer", ((0x1780, 0x17FF),)),
    Script("Cyrillic", ((0x0400, 0x052F),)),
    Script("Greek", ((0x0370, 0x03FF), (0x1F00, 0x1FFF))),
    Script("Korean", ((0x1100, 0x11FF), (0xAC00, 0xD7AF))),
    Script("Japanese", ((0x3040, 0x30FF),)),
)


def token_scores(
    source: Source, vocabulary: Sequence[bytes], n_seen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Give log(P(token | source) / P(token)) of every token.

    Args:
        source: where strings are drawn from.
        vocabulary: bytes of each token; a byte that is no character alone counts as a character.
        n_seen: (d_vocab,) occurrences; a token that does not occur is given one.

    Returns:
        (d_vocab,) nats.

    Example:
        >>> token_scores(SOURCES[1], [b"AC", b"T"], np.array([15, 1])).round(3).tolist()
        [-2.708, 1.386]
    """
    texts = [token.decode("utf-8", errors="surrogateescape") for token in vocabulary]
    known = set(source.alphabet)
    n_inside = np.array([sum(char in known for char in text) for text in texts])
    n_chars = np.array([len(text) for text in texts])
    given = -n_inside * math.log(source.n_letters) + (n_chars - n_inside) * math.log(FOREIGN)
    frequency = np.maximum(n_seen, 1) / max(1, int(n_seen.sum()))
    scores: NDArray[np.float64] = given - np.log(frequency)
    return scores


def best_scores(
    scores: NDArray[np.float64], starts: NDArray[np.int64], *, least: int
) -> NDArray[np.float64]:
    """Give the largest sum of any stretch of tokens that ends at each token, within its document.

    Args:
        scores: (n_tokens,) nats.
        starts: (n_documents + 1,) first token of each document, and the end.
        least: tokens in a stretch, at least.

    Returns:
        (n_tokens,) nats; -inf where the document has not `least` tokens yet.

    Example:
        >>> best_scores(np.array([1.0, -3.0, 2.0, 2.0, -1.0]), np.array([0, 5]), least=1).tolist()
        [1.0, -2.0, 2.0, 4.0, 3.0]
    """
    best = np.full(len(scores), -np.inf)
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        sums = np.concatenate([np.zeros(1), np.cumsum(scores[first:end])])
        lowest = np.minimum.accumulate(sums)[: max(0, len(sums) - least)]
        best[end - len(lowest) : end] = sums[len(sums) - len(lowest) :] - lowest
    return best


def script_codes(document: bytes) -> NDArray[np.uint8]:
    r"""Give the script of the character that each byte belongs to.

    Args:
        document: any bytes.

    Returns:
        (n_bytes,) 1 + index into `SCRIPTS`, 0 for any other character.

    Example:
        >>> script_codes("a\u0ba3\u05d0".encode()).tolist()
        [0, 3, 3, 3, 2, 2]
    """
    text = document.decode("utf-8", errors="surrogateescape")
    points = code_points(text)
    codes = np.zeros(len(points), np.uint8)
    if not document.isascii():
        for at, script in enumerate(SCRIPTS):
            for first, last in script.ranges:
                codes[(points >= first) & (points <= last)] = at + 1
    return np.repeat(codes, character_widths(text))


def open_characters(document: bytes, ends: NDArray[np.int64]) -> OpenCharacters:
    r"""Find the character within which each token of a document ends.

    Args:
        document: any bytes.
        ends: (n_tokens,) one past the last byte of each token.

    Example:
        >>> found = open_characters("a\u0ba3".encode(), np.array([1, 3, 4]))
        >>> found.begins.tolist(), [hex(prefix) for prefix in found.prefixes.tolist()]
        ([1, 1, 4], ['0x0', '0xe0ae', '0x0'])
    """
    widths = character_widths(document.decode("utf-8", errors="surrogateescape"))
    until = np.cumsum(widths)
    character = np.repeat(np.arange(len(widths)), widths)[ends - 1]
    is_open = until[character] > ends
    begins = np.where(is_open, until[character] - widths[character], ends)
    padded = np.frombuffer(document + bytes(MOST_OPEN), np.uint8).astype(np.int64)
    prefixes = np.zeros(len(ends), np.int64)
    for at in range(MOST_OPEN):
        longer = prefixes << 8 | padded[begins + at]
        prefixes = np.where(begins + at < ends, longer, prefixes)
    return OpenCharacters(begins, prefixes)


def script_truth(
    whole: NDArray[np.bool_], last: NDArray[np.bool_], prefixes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Give the tokens whose proxy is above 0 for a script.

    Args:
        whole: (n_tokens,) whether all bytes but those of an open character belong to characters of the script.
        last: (n_tokens,) whether the last byte does.
        prefixes: (n_tokens,) as of `OpenCharacters`.

    Returns:
        (n_tokens,).

    Example:
        >>> last = np.array([True, True, False, False]).repeat(150)
        >>> whole = np.ones(600, np.bool_)
        >>> prefixes = np.array([0, 7, 7, 0]).repeat(
        ...     150
        ... )  # half of those that end in 7 are of the script, as of all
        >>> script_truth(whole, last, prefixes)[::150].tolist()
        [True, False, False, False]
    """
    inside = whole & last
    if inside.sum() < LEAST_TOKENS:
        return np.zeros_like(inside)
    _, kind = np.unique(prefixes, return_inverse=True)
    share = np.bincount(kind, weights=last) / np.bincount(kind)
    truth: NDArray[np.bool_] = whole & np.where(prefixes > 0, share[kind] > inside.mean(), last)
    return truth
