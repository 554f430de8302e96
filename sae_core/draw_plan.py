"""Where tokens are drawn to measure edges: positions of a run, in the windows as they were read.

1. `ReadWindows` finds, from window ids alone, what the model read for each window: its warm-up, its
   tokens, and the start token before a document's first.
2. `plan_draws` takes positions of each source at random, with replacement, among those where it
   fires and a token follows in the same window.
3. `batches` puts windows with about as many draws together, so that little is padded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from sae_core.schema import TokenTable


class Draws(NamedTuple):
    """Positions in windows at which a feature fires, one token to be drawn at each."""

    rows: NDArray[np.int64]
    """(n,) window of each, ascending."""

    pos: NDArray[np.int64]
    """(n,) position in the window; pos + 1 < n_ctx."""

    sources: NDArray[np.int64]
    """(n,) the feature that fires there and is taken out."""

    acts: NDArray[np.float32]
    """(n,) its activation."""

    chances: NDArray[np.float64]
    """(n,) uniform in [0, 1): which token is drawn."""

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Draws:
        """Give some of the draws."""
        return Draws._make([column[rows] for column in self])

    @property
    def columns(self) -> NDArray[np.int64]:
        """(n,) number of each draw among those of its window, from 0."""
        return np.arange(len(self.rows)) - np.searchsorted(self.rows, self.rows)


class ReadWindows(NamedTuple):
    """What the model read for each window of a run: places in the token table."""

    read: NDArray[np.int64]
    """(n_windows,) first token read."""

    record: NDArray[np.int64]
    """(n_windows,) first token recorded; those before it are warm-up."""

    end: NDArray[np.int64]
    """(n_windows,) one past the last."""

    lead: NDArray[np.int64]
    """(n_windows,) 1 where a start token stood in front."""

    @classmethod
    def of(cls, tokens: TokenTable, *, warm_up: int, has_start: bool) -> ReadWindows:
        """Find the windows of tokens in text order, whole documents.

        Args:
            tokens: n tokens.
            warm_up: tokens read again at the start of a window inside a document.
            has_start: whether a start token stood before each document.
        """
        is_first = np.diff(tokens.doc_ids.astype(np.int64), prepend=-1) != 0
        is_new = is_first | (np.diff(tokens.window_ids.astype(np.int64), prepend=-1) != 0)
        record = np.flatnonzero(is_new)
        document = np.flatnonzero(is_first)[np.cumsum(is_first)[record] - 1]
        read = np.maximum(record - warm_up, document)
        lead = (read == document).astype(np.int64) * has_start
        return cls(read, record, np.append(record, len(tokens.doc_ids))[1:], lead)

    def token_ids(
        self, tokens: TokenTable, windows: NDArray[np.int64], start: int | None
    ) -> NDArray[np.int64]:
        """Give (n, longest) what the model read for some windows, 0 after the end of the shorter."""
        sizes = self.lead[windows] + self.end[windows] - self.read[windows]
        ids = np.zeros((len(windows), int(sizes.max())), np.int64)
        for row, (window, size) in enumerate(zip(windows, sizes, strict=True)):
            lead = self.lead[window]
            ids[row, :lead] = start or 0
            ids[row, lead:size] = tokens.token_ids[self.read[window] : self.end[window]]
        return ids


def plan_draws(
    tokens: TokenTable,
    windows: ReadWindows,
    sources: NDArray[np.integer],
    *,
    n_draws: int,
    seed: int,
) -> Draws:
    """Choose positions of each source.

    Args:
        tokens: of a run, with the features that fire on each.
        windows: of these tokens.
        sources: features, each once.
        n_draws: positions of each; none of a source that never fires before a token.
        seed: with the source alone decides its positions and chances.

    Returns:
        Draws by window; rows count windows of the run.
    """
    has_next = np.ones(len(tokens.doc_ids), np.bool_)
    has_next[windows.end - 1] = False
    token = np.repeat(np.arange(len(has_next)), np.diff(tokens.indptr))
    entries = np.flatnonzero(has_next[token] & np.isin(tokens.features, sources))
    entries = entries[np.argsort(tokens.features[entries], kind="stable")]
    starts = np.searchsorted(tokens.features[entries], np.append(sources, 2**32))
    ends = np.searchsorted(tokens.features[entries], sources, side="right")
    chosen, chances = [np.empty(0, np.int64)], [np.empty(0)]
    for source, first, end in zip(sources.tolist(), starts, ends, strict=False):
        if end > first:
            rng = np.random.default_rng([seed, source])
            chosen.append(entries[rng.integers(first, end, n_draws)])
            chances.append(rng.random(n_draws))
    entry = np.concatenate(chosen)
    row = np.searchsorted(windows.record, token[entry], side="right") - 1
    pos = windows.lead[row] + token[entry] - windows.read[row]
    features = tokens.features[entry].astype(np.int64)
    draws = Draws(row, pos, features, tokens.acts[entry], np.concatenate(chances))
    return draws.take(np.argsort(row, kind="stable"))


def batches(draws: Draws, n_windows: int) -> Iterator[tuple[NDArray[np.int64], Draws]]:
    """Give windows and their draws, `n_windows` at a time; rows count the windows of the batch."""
    windows, first, counts = np.unique(draws.rows, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    for at in range(0, len(order), n_windows):
        some = order[at : at + n_windows]
        rows = np.concatenate([np.arange(first[w], first[w] + counts[w]) for w in some])
        local = np.repeat(np.arange(len(some)), counts[some])
        yield windows[some], draws.take(rows)._replace(rows=local)


def portions(draws: Draws, n_columns: int) -> Iterable[Draws]:
    """Give the draws of a batch, `n_columns` of each window at a time."""
    part = draws.columns // n_columns
    return [draws.take(part == at) for at in range(int(part.max(initial=-1)) + 1)]
