"""Sums of each document, and the ratios and intervals that they give.

1. Documents are cut into windows; no window holds two documents.
2. Each window adds a row of numbers to its document. Rows of text and model are the same for all
   dictionaries; each dictionary has rows of its own.
3. The ratios of all documents' sums are the measures; those of documents drawn with replacement give
   the intervals, 2.5th to 97.5th percentile of the draws.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap" (clusters are drawn whole).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Table = NDArray[np.float64]

N_RESAMPLES = 1000  # the ends of an interval then shake by about a fiftieth of its length
BOOTSTRAP_SEED = 0
DRAWS_AT_ONCE = 50  # of 40,000 documents they are 16 MB
PAD = -1
TEXT_COLUMNS = (
    "n_tokens",
    "n_predicted",
    "square",
    "loss_clean",
    "loss_zero",
)  # then d_in sums of x
DICTIONARY_COLUMNS = ("n_active", "error", "loss_sae")


class WindowBatch(NamedTuple):
    """Windows of documents, in order."""

    token_ids: NDArray[np.int64]
    """(n_windows, n_ctx) ids, PAD after the document's end."""

    documents: NDArray[np.int64]
    """(n_windows,) number of each window's document, ascending from 0 over all batches."""

    is_led: NDArray[np.bool_]
    """(n_windows,) whether the window's first token is the start token, which is not text."""

    @property
    def is_read(self) -> NDArray[np.bool_]:
        """(n_windows, n_ctx) whether there is a token."""
        return np.not_equal(self.token_ids, PAD)

    @property
    def is_text(self) -> NDArray[np.bool_]:
        """(n_windows, n_ctx) whether there is a token of the document."""
        found = self.is_read
        found[:, 0] &= ~self.is_led
        return found


class Ratios(NamedTuple):
    """The measures of one or more sets of documents, (n,) each."""

    l0: Table
    """Active features a token."""

    fvu: Table
    """Squared error / squared deviation from the set's mean activation."""

    loss_recovered: Table
    """(loss_zero - loss_sae) / (loss_zero - loss_clean); NaN where zeroing costs nothing."""


class DocumentSums:
    """Rows of numbers, added up by document in float64."""

    def __init__(self, n_columns: int) -> None:
        self._documents: list[NDArray[np.int64]] = []
        self._rows: list[Table] = [np.zeros((0, n_columns))]

    def add(self, documents: NDArray[np.int64], rows: Table) -> None:
        """Add a row (n_columns,) of each window to its document; documents ascend."""
        starts = np.flatnonzero(np.diff(documents, prepend=-1))
        self._documents.append(documents[starts])
        self._rows.append(np.add.reduceat(rows, starts, axis=0))

    def table(self) -> Table:
        """Give the sums: (n_documents, n_columns)."""
        rows = np.concatenate(self._rows)
        documents = np.concatenate([np.zeros(0, np.int64), *self._documents])
        found = np.zeros((documents.max(initial=-1) + 1, rows.shape[1]))
        np.add.at(found, documents, rows)
        return found


def window_batches(
    documents: Iterable[NDArray[np.integer]], *, n_ctx: int, start_token: int | None, size: int
) -> Iterator[WindowBatch]:
    """Cut documents into windows.

    Args:
        documents: (n,) token ids of each, without a start token; empty ones are passed over.
        n_ctx: tokens of a window.
        start_token: put before each document; None puts none.
        size: windows of a batch.

    Yields:
        Windows in text order; the last batch may be smaller.
    """
    lead = [] if start_token is None else [start_token]
    rows: list[tuple[NDArray[np.int64], int, bool]] = []
    full = (document for document in documents if len(document))
    for number, document in enumerate(full):
        ids = np.concatenate([np.array(lead, np.int64), np.asarray(document, np.int64)])
        for first in range(0, len(ids), n_ctx):
            part = ids[first : first + n_ctx]
            row = np.pad(part, (0, n_ctx - len(part)), constant_values=PAD)
            rows.append((row, number, bool(lead) and first == 0))
            if len(rows) == size:
                yield _stacked(rows)
                rows = []
    if rows:
        yield _stacked(rows)


def ratios(text: Table, dictionary: Table) -> Ratios:
    """Give the measures of sets of documents from the sums of each.

    Args:
        text: (n, 5 + d_in), a row a set; TEXT_COLUMNS, then the sum of the activations.
        dictionary: (n, 3) DICTIONARY_COLUMNS.
    """
    n_tokens, _, square, clean, zero = text[:, : len(TEXT_COLUMNS)].T
    n_active, error, spliced = dictionary.T
    variance = square - np.square(text[:, len(TEXT_COLUMNS) :]).sum(axis=1) / n_tokens
    with np.errstate(divide="ignore", invalid="ignore"):
        fvu = np.where(variance > 0, error / variance, 0.0)
        recovered = np.where(zero != clean, (zero - spliced) / (zero - clean), np.nan)
    return Ratios(n_active / n_tokens, fvu, recovered)


def resampled(text: Table, dictionaries: Sequence[Table]) -> list[Ratios]:
    """Give the measures of documents drawn with replacement, as many as there are.

    Args:
        text: (n_documents, 5 + d_in) sums, as of `ratios`.
        dictionaries: (n_documents, 3) sums of each dictionary.

    Returns:
        N_RESAMPLES values of each measure, for each dictionary; all have the same draws. None of
        a single document, which could only be drawn itself.
    """
    rng, n = np.random.default_rng(BOOTSTRAP_SEED), len(text)
    if n < 2:
        return [Ratios(*np.zeros((len(Ratios._fields), 0))) for _ in dictionaries]
    found: list[list[Ratios]] = [[] for _ in dictionaries]
    for _ in range(0, N_RESAMPLES, DRAWS_AT_ONCE):
        drawn = rng.integers(n, size=(DRAWS_AT_ONCE, n))
        weights = np.stack([np.bincount(draw, minlength=n) for draw in drawn]).astype(float)
        text_sums = weights @ text
        for parts, dictionary in zip(found, dictionaries, strict=True):
            parts.append(ratios(text_sums, weights @ dictionary))
    return [
        Ratios(*(np.concatenate(column) for column in zip(*parts, strict=True))) for parts in found
    ]


def interval(draws: Table) -> tuple[float | None, float | None]:
    """Give the ends of the 95 % interval of draws, NaN ones left out; None where none is left.

    Example:
        >>> interval(np.arange(41.0))
        (1.0, 39.0)
    """
    known = draws[~np.isnan(draws)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _stacked(rows: list[tuple[NDArray[np.int64], int, bool]]) -> WindowBatch:
    token_ids, documents, is_led = zip(*rows, strict=True)
    return WindowBatch(np.stack(token_ids), np.array(documents), np.array(is_led))
