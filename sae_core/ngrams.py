"""Interpolated modified Kneser-Ney n-grams: a token stream in, next-token log-probabilities out.

1. Every n-gram is packed into one int64 (its tokens are the digits, the vocabulary the base);
   sorting the packed n-grams counts them.
2. The highest order keeps its counts. A lower order counts in how many different left contexts its
   n-gram stands; an n-gram that starts with a document's start has no left context and keeps its
   count.
3. Each order takes a discount D1, D2 or D3+ from counts of 1, 2 and >= 3, and gives what it took to
   the order below, down to the uniform distribution:
   P(w | context) = (c - D(c)) / total + gamma(context) * P(w | context without its first token).

Documents start with token 0, which is context but never predicted; no context reaches beyond it.

Source: Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling",
section 4.1.6 and equations 21 to 27; document starts as in Heafield et al. 2013, section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

START_TOKEN = 0
MAX_KEY = 2**63 - 1
N_DISCOUNTS = 3  # for counts of 1, 2 and >= 3
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # KenLM's, where counts are too few or too even to estimate


class Order(NamedTuple):
    """The n-grams of one length, ready to be looked up."""

    keys: NDArray[np.int64]
    """(n_ngrams,) packed n-grams, ascending."""

    probs: NDArray[np.float64]
    """(n_ngrams,) discounted count / total of the context, in [0, 1)."""

    contexts: NDArray[np.int64]
    """(n_contexts,) packed n-grams without their last token, ascending."""

    backoffs: NDArray[np.float64]
    """(n_contexts,) gamma, the share that each context gives to the order below, in (0, 1]."""


class NgramModel:
    """Next-token probabilities from the last `order` - 1 tokens; made by `train_ngrams`."""

    def __init__(self, orders: list[Order], d_vocab: int) -> None:
        self.orders = orders
        self.d_vocab = d_vocab

    @property
    def order(self) -> int:
        """Length of the longest n-gram: 1 for unigrams."""
        return len(self.orders)

    def log_probs(self, token_ids: NDArray[np.integer]) -> NDArray[np.float64]:
        """Give the log-probability of each token after those before it in its document.

        Args:
            token_ids: (n_tokens,) ids in 0..d_vocab - 1; documents start with id 0.

        Returns:
            (n_tokens,) nats, <= 0; nan where a document starts, which is not predicted.

        Raises:
            ValueError: the first id is not 0, or an id is not below d_vocab.
        """
        _check_stream(token_ids, self.d_vocab)
        probs = np.full(len(token_ids), 1 / (self.d_vocab - 1))
        for n, table in enumerate(self.orders, start=1):
            ends = _ends(token_ids, n)
            keys = _pack(token_ids, ends, n, self.d_vocab)
            below = _look_up(table.contexts, table.backoffs, keys // self.d_vocab, absent=1.0)
            probs[ends] = probs[ends] * below + _look_up(table.keys, table.probs, keys, absent=0.0)
        probs[token_ids == START_TOKEN] = np.nan
        logs: NDArray[np.float64] = np.log(probs)
        return logs


def train_ngrams(token_ids: NDArray[np.integer], *, order: int, d_vocab: int) -> NgramModel:
    """Count a token stream and smooth the counts.

    Args:
        token_ids: (n_tokens,) ids in 0..d_vocab - 1; documents start with id 0.
        order: length of the longest n-gram, >= 1.
        d_vocab: size of the vocabulary, id 0 included.

    Returns:
        The model. Memory while counting is about 25 bytes a token and 16 a different n-gram.

    Raises:
        ValueError: order or d_vocab is too small or too large, the first id is not 0, an id is
            not below d_vocab, or there is nothing to predict.

    Example:
        >>> model = train_ngrams(np.array([0, 1, 2, 1, 2, 0, 1]), order=2, d_vocab=4)
        >>> np.exp(model.log_probs(np.array([0, 1, 2, 3]))).round(3)
        array([  nan, 0.75 , 0.667, 0.083])
    """
    if order < 1 or d_vocab < 2 or d_vocab**order > MAX_KEY:
        raise ValueError(
            f"order must be >= 1 and d_vocab >= 2 with d_vocab ** order < 2 ** 63, got order "
            f"{order} and d_vocab {d_vocab}"
        )
    _check_stream(token_ids, d_vocab)
    keys, counts = _count(_pack(token_ids, _ends(token_ids, order), order, d_vocab))
    tables = [_smooth(keys, counts, d_vocab)]
    for n in range(order - 1, 0, -1):
        keys, counts = _count(np.concatenate([keys % d_vocab**n, _leading(token_ids, n, d_vocab)]))
        tables.append(_smooth(keys, counts, d_vocab))
    if not len(keys):
        raise ValueError("the stream holds document starts only; there is no token to predict")
    return NgramModel(tables[::-1], d_vocab)


def discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Estimate what to take from counts of 1, 2 and >= 3.

    Args:
        counts: (n_ngrams,) how often each n-gram of one order was seen, >= 1.

    Returns:
        (3,) D1, D2 and D3+, each > 0 and below its count; FALLBACK_DISCOUNTS where the counts of
        counts cannot give that.

    Source: Chen & Goodman 1998, equation 26.
    """
    n1, n2, n3, n4 = (int(n) for n in np.bincount(np.minimum(counts, 5), minlength=6)[1:5])
    if not (n1 and n2 and n3):
        return np.array(FALLBACK_DISCOUNTS)
    y = n1 / (n1 + 2 * n2)
    found = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return found if (found > 0).all() else np.array(FALLBACK_DISCOUNTS)


def _check_stream(token_ids: NDArray[np.integer], d_vocab: int) -> None:
    if not len(token_ids) or token_ids[0] != START_TOKEN:
        first = token_ids[0] if len(token_ids) else "nothing"
        raise ValueError(f"a stream must start with a document's id {START_TOKEN}, got {first}")
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or high >= d_vocab:
        raise ValueError(f"token ids must be in 0..{d_vocab - 1}, got {low}..{high}")


def _ends(token_ids: NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """List where an n-gram inside one document ends: only its first token may be a start."""
    fits = token_ids[n - 1 :] != START_TOKEN
    for back in range(1, n - 1):
        fits &= token_ids[n - 1 - back : -back] != START_TOKEN
    return np.flatnonzero(fits) + (n - 1)


def _pack(
    token_ids: NDArray[np.integer], ends: NDArray[np.int64], n: int, d_vocab: int
) -> NDArray[np.int64]:
    """Write the n-grams that end at `ends` as numbers, the last token the lowest digit."""
    keys = np.zeros(len(ends), np.int64)
    for back in range(n - 1, -1, -1):
        keys *= d_vocab
        keys += token_ids[ends - back]
    return keys


def _leading(token_ids: NDArray[np.integer], n: int, d_vocab: int) -> NDArray[np.int64]:
    """Pack the n-grams that open a document, one for each time that they do."""
    ends = _ends(token_ids, n)
    return _pack(token_ids, ends[token_ids[ends - (n - 1)] == START_TOKEN], n, d_vocab)


def _count(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the different keys, ascending, and how often each stands there; sorts `keys`."""
    keys.sort()
    starts = _run_starts(keys)
    return keys[starts], np.diff(starts, append=len(keys))


def _run_starts(ascending: NDArray[np.int64]) -> NDArray[np.int64]:
    """List where a new value begins."""
    is_new = np.ones(len(ascending), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=is_new[1:])
    return np.flatnonzero(is_new)


def _smooth(keys: NDArray[np.int64], counts: NDArray[np.int64], d_vocab: int) -> Order:
    """Turn the counts of one order into discounted shares and backoffs."""
    if not len(keys):
        none = np.empty(0)
        return Order(keys, none, keys, none)
    taken = discounts(counts)[np.minimum(counts, N_DISCOUNTS) - 1]  # (n_ngrams,)
    contexts = keys // d_vocab
    starts = _run_starts(contexts)
    totals = np.add.reduceat(counts, starts)  # (n_contexts,)
    backoffs = np.add.reduceat(taken, starts) / totals
    n_in_context = np.diff(starts, append=len(keys))
    probs = (counts - taken) / np.repeat(totals, n_in_context)
    return Order(keys, probs, contexts[starts], backoffs)


def _look_up(
    keys: NDArray[np.int64],
    values: NDArray[np.float64],
    wanted: NDArray[np.int64],
    *,
    absent: float,
) -> NDArray[np.float64]:
    """Give the value of each wanted key, or `absent`; `keys` ascend."""
    if not len(keys):
        return np.full(len(wanted), absent)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: NDArray[np.float64] = np.where(keys[at] == wanted, values[at], absent)
    return found
