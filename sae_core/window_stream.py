"""Documents -> the windows that a model reads, in text order, each token recorded once.

1. A document's bytes are tokenised, with the byte range of each token.
2. It is cut into windows; a later window begins with warm-up tokens that are read but not recorded.
3. Windows are numbered over the whole run; a fixed number of them makes a shard.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sae_core.tokens import windows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from sae_core.corpus import Document


class Encoding(NamedTuple):
    """A document as tokens."""

    token_ids: NDArray[np.int64]
    """(n,) vocabulary ids; their bytes, joined, are the document."""

    byte_end: NDArray[np.int64]
    """(n,) one past each token's last byte in the document."""


class DocumentRow(NamedTuple):
    """One row of documents.parquet, but for its number of tokens."""

    doc_id: int
    source: str
    sha256: str
    n_bytes: int
    held_out: bool


class WindowRow(NamedTuple):
    """One window of one document."""

    document: DocumentRow
    window_id: int

    first: int
    """Position in the document of the first token read."""

    n_warm: int
    """Tokens at its start that are read but not recorded."""

    token_ids: NDArray[np.int64]
    """(n_read,) tokens read, warm-up included."""

    byte_start: NDArray[np.int64]
    """(n_read,) first byte of each."""

    byte_end: NDArray[np.int64]
    """(n_read,) one past the last byte of each."""


def is_held_out(sha256: str, share: float) -> bool:
    """Say whether a document is set aside, from the hash of its text alone.

    Args:
        sha256: 64 hex digits.
        share: share of documents to set aside, in [0, 1).
    """
    return int(sha256[:8], 16) < share * 2**32


def iter_windows(
    documents: Iterable[Document],
    encode: Callable[[bytes], Encoding],
    *,
    n_first: int,
    n_ctx: int,
    warm_up: int,
    held_out: float,
    max_tokens: int | None,
) -> Iterator[WindowRow]:
    """Cut documents into windows.

    Args:
        documents: in the order of the run.
        encode: the model's tokenizer.
        n_first: tokens that fit a document's first window.
        n_ctx: tokens that fit any later window.
        warm_up: tokens read again at the start of a later window.
        held_out: share of documents to set aside.
        max_tokens: stop after this many recorded tokens; None reads everything.

    Yields:
        Windows in text order.
    """
    left = max_tokens
    window_id = 0
    for doc_id, document in enumerate(documents):
        row = DocumentRow(
            doc_id,
            document.source,
            document.sha256,
            len(document.data),
            is_held_out(document.sha256, held_out),
        )
        encoding = encode(document.data)
        n_tokens = len(encoding.token_ids) if left is None else min(left, len(encoding.token_ids))
        starts = np.concatenate(([0], encoding.byte_end[:-1]))
        for window in windows_of(n_tokens, n_first=n_first, n_ctx=n_ctx, warm_up=warm_up):
            read = slice(window.start, window.end)
            yield WindowRow(
                row,
                window_id,
                window.start,
                window.record - window.start,
                encoding.token_ids[read],
                starts[read],
                encoding.byte_end[read],
            )
            window_id += 1
        if left is not None:
            left -= n_tokens
            if left <= 0:
                return


def batched(rows: Iterator[WindowRow], size: int) -> Iterator[list[WindowRow]]:
    """Group windows into lists of `size`, the last one perhaps shorter."""
    while batch := list(islice(rows, size)):
        yield batch
