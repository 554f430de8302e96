"""Traces of a run's own text, found by its bytes, and of other text, cut by the run's vocabulary.

1. Text of a run is traced on its stored tokens.
2. Other text is cut greedily, the longest entry of the run's vocabulary first, and read by tokens.
   That need not be the cut of the model's own tokenizer; `circuits trace` has that.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from circuits.trace import trace
from sae_core.errors import GraphError, StoreError
from sae_core.schema import TokenTable
from sae_core.store import refuse_not_finite, token_files
from sae_core.tokens import token_str

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from circuits.automaton import FeatureAutomaton
    from circuits.run import Run
    from circuits.trace import By


def trace_text(
    automaton: FeatureAutomaton, run: Run, text: bytes, *, by: By | None = None
) -> pl.DataFrame:
    """Run an automaton over the text of one document.

    Args:
        automaton: the automaton.
        run: the run it was found in.
        text: bytes of a document; of the run or not.
        by: "features" needs a document of the run; None takes features where they are known, and
            tokens elsewhere.

    Returns:
        The rows of `trace`; for text that is not the run's, `source` is "text".

    Raises:
        GraphError: by features, but no document of the run has these bytes.
        StoreError: by features, but the run keeps no activations.
    """
    found = _document_with(run, text)
    if found is None and by == "features":
        raise GraphError(
            f"no document of {run.path} has these {len(text)} bytes, and features need the model: "
            f'run `circuits trace {run.path} {automaton.name} TEXT`, or trace with by="tokens"'
        )
    if found is not None:
        tokens, has_acts = _stored_tokens(run, found)
        if by == "features" and not has_acts:
            raise StoreError(
                f"{run.path} keeps no activations; gather again with --keep-acts, "
                'or trace with by="tokens"'
            )
        return trace(
            automaton,
            tokens,
            token_strs=run.vocabulary.sort("token_id")["token_str"].to_list(),
            sources=dict(run.documents.select("doc_id", "source").iter_rows()),
            mean_act=run.mean_acts if has_acts else None,
            by=by or ("features" if has_acts else "tokens"),
        )
    pieces, texts = _cut_tokens(text, run.vocabulary["token_bytes"].to_list())
    return trace(automaton, pieces, token_strs=texts, sources={0: "text"}, by="tokens")


def greedy_tokens(text: bytes, vocabulary: Sequence[bytes]) -> list[bytes]:
    """Cut bytes into vocabulary entries, the longest that fits first.

    Args:
        text: any bytes.
        vocabulary: the bytes of each token.

    Returns:
        Pieces that join to `text`; a byte that starts no entry is a piece of its own.

    Example:
        >>> greedy_tokens(b"abcd", [b"a", b"ab", b"abd", b"c"])
        [b'ab', b'c', b'd']
    """
    known = frozenset(vocabulary) - {b""}
    lengths: dict[int, set[int]] = {}
    for entry in known:
        lengths.setdefault(entry[0], set()).add(len(entry))
    longest_first = {byte: sorted(sizes, reverse=True) for byte, sizes in lengths.items()}
    pieces, at = [], 0
    while at < len(text):
        sizes = longest_first.get(text[at], ())
        size = next((size for size in sizes if text[at : at + size] in known), 1)
        pieces.append(text[at : at + size])
        at += size
    return pieces


def _cut_tokens(text: bytes, vocabulary: Sequence[bytes]) -> tuple[TokenTable, list[str]]:
    """Give the pieces of a text as tokens of one window, each piece its own vocabulary entry."""
    pieces = greedy_tokens(text, vocabulary)
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    frame = pl.DataFrame(
        {
            "doc_id": np.zeros(len(pieces), dtype=np.uint32),
            "window_id": np.zeros(len(pieces), dtype=np.uint32),
            "pos": np.arange(len(pieces), dtype=np.uint32),
            "token_id": np.arange(len(pieces), dtype=np.uint32),
            "byte_start": np.append(0, ends)[: len(pieces)],
            "byte_end": ends,
        }
    )
    return _table_of(frame), [token_str(piece) for piece in pieces]


def _document_with(run: Run, text: bytes) -> int | None:
    """Find the document that reads as these bytes; its stored hash may be of text cut since."""
    lengths: dict[int, int] = {}
    for file in token_files(run.path):
        sizes = _scan(file).group_by("doc_id").agg(pl.col("byte_end").max())
        for doc_id, n_bytes in _collected(sizes, file).iter_rows():
            lengths[doc_id] = max(n_bytes, lengths.get(doc_id, 0))
    same = sorted(doc_id for doc_id, n_bytes in lengths.items() if n_bytes == len(text))
    return next((doc_id for doc_id in same if run.document(doc_id) == text), None)


def _stored_tokens(run: Run, doc_id: int) -> tuple[TokenTable, bool]:
    """Read one document's tokens, and say whether what fires on them is kept."""
    pieces = [
        _collected(_scan(file).filter(pl.col("doc_id") == doc_id), file)
        for file in token_files(run.path)
    ]
    frame = pl.concat(pieces)
    table = _table_of(frame)
    refuse_not_finite(table)
    return table, "features" in frame.columns


def _table_of(frame: pl.DataFrame) -> TokenTable:
    """Give a frame of tokens as arrays; without the columns of activations, nothing fires."""
    n_fires = np.zeros(len(frame), dtype=np.int64)
    features, acts = np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.float32)
    if "features" in frame.columns:
        n_fires = frame["features"].list.len().to_numpy()
        features = np.array(list(chain.from_iterable(frame["features"].to_list())), np.uint32)
        acts = np.array(list(chain.from_iterable(frame["acts"].to_list())), np.float32)
    return TokenTable(
        frame["doc_id"].to_numpy(),
        frame["window_id"].to_numpy(),
        frame["pos"].to_numpy(),
        frame["token_id"].to_numpy(),
        frame["byte_start"].to_numpy(),
        frame["byte_end"].to_numpy(),
        indptr=np.append(0, np.cumsum(n_fires)).astype(np.int64),
        features=features,
        acts=acts,
        promotions=np.zeros_like(acts),
    )


def _scan(file: Path) -> pl.LazyFrame:
    return pl.scan_parquet(file, glob=False)


def _collected(frame: pl.LazyFrame, file: Path) -> pl.DataFrame:
    try:
        return frame.collect()
    except (pl.exceptions.PolarsError, OSError) as err:
        raise StoreError(f"{file} is not a whole token shard; run `circuits verify`") from err
