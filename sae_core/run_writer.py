"""Run directories from arrays: the open door for activations made elsewhere.

`write_run` takes documents, tokens and sparse features of any model and any dictionary and writes a run directory
that `circuits graph` and everything after it read, with no model at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import polars as pl

from sae_core.errors import StoreError
from sae_core.files import write_parquet
from sae_core.schema import TokenTable
from sae_core.store import (
    DOCUMENT_SCHEMA,
    VOCABULARY_SCHEMA,
    Manifest,
    write_manifest,
    write_tokens,
)
from sae_core.tokens import token_bytes, token_str

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import ArrayLike

Table: TypeAlias = "pl.DataFrame | Mapping[str, Any]"
_COLUMNS = ("doc_id", "token_id")


def vocabulary_frame(tokens: Sequence[bytes]) -> pl.DataFrame:
    """Give the vocabulary table: token_id, token_bytes, token_str.

    Args:
        tokens: the bytes of each token, by id.
    """
    rows = {
        "token_id": range(len(tokens)),
        "token_bytes": list(tokens),
        "token_str": [token_str(token) for token in tokens],
    }
    return pl.DataFrame(rows, schema=VOCABULARY_SCHEMA)


def write_run(
    out: str | PathLike[str],
    *,
    documents: Table | Sequence[str],
    tokens: Table,
    indptr: ArrayLike,
    features: ArrayLike,
    acts: ArrayLike,
    promotions: ArrayLike,
    vocabulary: Sequence[bytes] | None = None,
    d_sae: int | None = None,
) -> Path:
    """Write a run directory from arrays.

    Args:
        out: the new run directory; must not exist, or be empty.
        documents: doc_id and source (or a list of sources); sha256, n_bytes, n_tokens and held_out
            are filled in when missing.
        tokens: one row a token in text order: doc_id, token_id; window_id, pos, byte_start and
            byte_end are filled in when missing (one window a document; lengths of the token bytes).
        indptr: (n_tokens + 1,) start of each token's features.
        features: (nnz,) feature ids below d_sae, ascending within a token.
        acts: (nnz,) activations, > 0.
        promotions: (nnz,) nats that each feature gave to the token that came next.
        vocabulary: the bytes of each token, by id; when missing, taken from a column token_bytes
            (or token_str) of `tokens`.
        d_sae: number of features; when missing, one more than the largest feature id.

    Returns:
        The run directory.

    Raises:
        StoreError: `out` holds something already.
        ValueError: lengths, ids or values do not fit; the message names the argument.
    """
    run = Path(out)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise StoreError(f"{run} exists; choose a new folder")
    token_rows, document_rows = pl.DataFrame(tokens), _document_rows(documents)
    known = _vocabulary_of(token_rows) if vocabulary is None else vocabulary
    frame = _with_positions(token_rows, [len(token) for token in known])
    width = int(np.max(np.asarray(features), initial=0)) + 1 if d_sae is None else d_sae
    lists = _checked_lists(
        len(frame), width, indptr=indptr, features=features, acts=acts, promotions=promotions
    )
    table = TokenTable._make([*(frame[name].to_numpy() for name in frame.columns), *lists])
    _check_documents(table, document_rows)
    document_table = _documents_frame(document_rows, frame)
    write_parquet(run / "vocabulary.parquet", vocabulary_frame(known))
    write_parquet(run / "documents.parquet", document_table)
    write_tokens(run / "tokens" / "00000.parquet", table, keep_acts=True)
    write_manifest(run, Manifest(d_sae=width, d_vocab=len(known)))
    return run


def _document_rows(documents: Table | Sequence[str]) -> pl.DataFrame:
    if isinstance(documents, (pl.DataFrame, Mapping)):
        return pl.DataFrame(documents)
    return pl.DataFrame({"doc_id": range(len(documents)), "source": list(documents)})


def _vocabulary_of(tokens: pl.DataFrame) -> list[bytes]:
    column = next((name for name in ("token_bytes", "token_str") if name in tokens.columns), None)
    if column is None:
        raise ValueError("give vocabulary, the bytes of each token by id, or a column token_bytes")
    pairs = tokens.select("token_id", column).unique("token_id")
    known = dict(zip(pairs["token_id"].to_list(), pairs[column].to_list(), strict=True))
    found = [known.get(at, b"") for at in range(max(known, default=-1) + 1)]
    return [token if isinstance(token, bytes) else token_bytes(token) for token in found]


def _with_positions(tokens: pl.DataFrame, n_bytes: list[int]) -> pl.DataFrame:
    for name in _COLUMNS:
        if name not in tokens.columns:
            raise ValueError(f"tokens lacks the column {name!r}")
    ids = tokens["token_id"].to_numpy()
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= len(n_bytes)):
        raise ValueError(f"tokens.token_id must be below {len(n_bytes)}, the vocabulary's size")
    sizes = np.asarray(n_bytes, dtype=np.int64)[ids]
    filled = tokens.with_columns(pl.Series("_size", sizes))
    end = pl.col("_size").cum_sum().over("doc_id")
    defaults = {
        "window_id": pl.col("doc_id").rle_id(),
        "pos": pl.int_range(pl.len()).over("doc_id"),
        "byte_start": end - pl.col("_size"),
        "byte_end": end,
    }
    missing = [expr.alias(name) for name, expr in defaults.items() if name not in tokens.columns]
    order = ("doc_id", "window_id", "pos", "token_id")
    return filled.with_columns(missing).select(
        *(pl.col(name).cast(pl.UInt32) for name in order),
        pl.col("byte_start").cast(pl.Int64),
        pl.col("byte_end").cast(pl.Int64),
    )


def _checked_lists(
    n_tokens: int,
    d_sae: int,
    *,
    indptr: ArrayLike,
    features: ArrayLike,
    acts: ArrayLike,
    promotions: ArrayLike,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    starts = np.asarray(indptr, dtype=np.int64)
    ids, values, nats = np.asarray(features), np.asarray(acts), np.asarray(promotions)
    if starts.shape != (n_tokens + 1,) or starts[0] != 0 or np.any(np.diff(starts) < 0):
        raise ValueError(
            f"indptr must rise from 0 over {n_tokens + 1} entries, one more than tokens"
        )
    for name, array in (("features", ids), ("acts", values), ("promotions", nats)):
        if array.shape != (int(starts[-1]),):
            raise ValueError(f"{name} must have {int(starts[-1])} entries, got {array.shape}")
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= d_sae):
        raise ValueError(f"features must be in 0..{d_sae - 1}, got {ids.min()}..{ids.max()}")
    if not (np.all(np.isfinite(values)) and np.all(values > 0)):
        raise ValueError("acts must be finite and > 0; leave out features that do not fire")
    if not np.all(np.isfinite(nats)):
        raise ValueError("promotions must be finite; 0 where no token follows")
    rows = np.repeat(np.arange(n_tokens), np.diff(starts))
    if len(ids) > 1 and np.any((np.diff(ids.astype(np.int64)) <= 0) & (np.diff(rows) == 0)):
        raise ValueError("features must ascend within each token, without repeats")
    return starts, ids.astype(np.uint32), values.astype(np.float32), nats.astype(np.float32)


def _check_documents(table: TokenTable, documents: pl.DataFrame) -> None:
    unknown = set(np.unique(table.doc_ids).tolist()) - set(documents["doc_id"].to_list())
    if unknown:
        raise ValueError(f"tokens.doc_id {min(unknown)} is not among the documents")


def _documents_frame(documents: pl.DataFrame, tokens: pl.DataFrame) -> pl.DataFrame:
    sums = tokens.group_by("doc_id").agg(
        pl.len().alias("n_tokens"), pl.col("byte_end").max().alias("n_bytes")
    )
    given = documents.with_columns(pl.col("doc_id").cast(pl.UInt32))
    if "source" not in given.columns:
        raise ValueError("documents lacks the column 'source'")
    filled = given.join(sums, on="doc_id", how="left", suffix="_sum").sort("doc_id")
    defaults = {
        "sha256": pl.lit(""),
        "held_out": pl.lit(value=False),
    }
    for name in ("n_tokens", "n_bytes"):
        column = f"{name}_sum" if f"{name}_sum" in filled.columns else name
        filled = filled.with_columns(pl.coalesce(pl.col(name), pl.col(column)).fill_null(0))
    missing = [expr.alias(name) for name, expr in defaults.items() if name not in filled.columns]
    return filled.with_columns(missing).select(
        pl.col(name).cast(kind) for name, kind in DOCUMENT_SCHEMA.items()
    )
