"""What an automaton saves of each token of a text, with a 95 % interval over its documents.

1. Each document gives four sums: bits saved, steps, tokens inside, tokens.
2. Their totals give bits saved a step x coverage: bits a token of the whole text.
3. Documents drawn with replacement, as many as there are, give the interval: text is bursty, so that
   tokens drawn one by one would promise too much. The same draws serve every automaton of a text.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap" (clusters are drawn whole).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from circuits.truth_rows import interval_of, unit_draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from circuits.states import Steps
    from sae_core.schema import TokenTable

MAX_UNITS = 2000  # documents; neighbours of more are drawn together, so that draws take 16 MB

_draws = lru_cache(maxsize=4)(unit_draws)  # a text's automata are all scored on the same draws


class BitsPerToken(NamedTuple):
    """Bits saved a step x coverage."""

    value: float

    low: float | None
    """Lower end of the 95 % interval over documents; None where there is one document."""

    high: float | None
    """Upper end."""


def bits_per_token(
    tokens: TokenTable, sequence: NDArray[np.int32], steps: Steps, bits: NDArray[np.float64]
) -> BitsPerToken:
    """Give what an automaton saves of each token of a text.

    Args:
        tokens: n tokens in text order, at least one.
        sequence: (n,) state of each token, -1 outside.
        steps: the m steps taken from inside.
        bits: (m,) bits that each step saves.
    """
    document, n = documents_of(tokens), n_documents(tokens)
    columns = (
        np.bincount(document[steps.rows], weights=bits, minlength=n),
        np.bincount(document[steps.rows], minlength=n),
        np.bincount(document[sequence >= 0], minlength=n),
        np.bincount(document, minlength=n),
    )
    return interval(np.stack(columns, axis=1))


def interval(sums: NDArray[np.float64]) -> BitsPerToken:
    """Give bits saved a step x coverage of all documents, and of documents drawn with replacement.

    Args:
        sums: (n_documents, 4) bits saved, steps, tokens inside and tokens of each.

    Example:
        >>> interval(np.array([[8.0, 4, 4, 16]] * 3))
        BitsPerToken(value=0.5, low=0.5, high=0.5)
    """
    n_units = min(len(sums), MAX_UNITS)
    starts = -(-np.arange(n_units) * len(sums) // n_units)
    drawn = _product(_draws(n_units) @ np.add.reduceat(sums, starts, axis=0))
    return BitsPerToken(float(_product(sums.sum(axis=0))), *interval_of(drawn))


def documents_of(tokens: TokenTable) -> NDArray[np.int64]:
    """Number the documents of a text.

    Args:
        tokens: n tokens in text order.

    Returns:
        (n,) place of each token's document, 0 for the first.
    """
    starts = tokens.doc_ids[1:] != tokens.doc_ids[:-1]
    return np.concatenate(([0], np.cumsum(starts)))[: len(tokens.doc_ids)]


def n_documents(tokens: TokenTable) -> int:
    """Count the documents of a text."""
    return int(documents_of(tokens)[-1]) + 1 if len(tokens.doc_ids) else 0


def _product(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give bits saved a step x coverage of sums, (..., 4) to (...); 0 where no step was taken."""
    bits, steps, inside, tokens = np.moveaxis(sums, -1, 0)
    saved = np.divide(bits, steps, out=np.zeros_like(bits), where=steps > 0)
    product: NDArray[np.float64] = saved * inside / np.maximum(tokens, 1)
    return product
