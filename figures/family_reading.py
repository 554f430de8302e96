"""Held-out documents -> their tokens, and what every dictionary and every neuron says on each.

1. Of a table as the corpus recipe writes it, documents of the split `validation` are kept; a table without splits, such
   as the demo's sample, is held out as a whole. Of a long document the beginning is taken, and of each family a
   number of bytes, in the order of the hashes.
2. Within a family and package, documents go to the two halves in turn, in the order of their hashes.
3. The model reads windows as `circuits gather` does: later ones begin with tokens that are read again.
4. A dictionary's activations are kept by feature; neurons, which are dense, in half precision (a relative error below
   0.0005), so that two million tokens take 2 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import polars as pl
import torch

from figures.family_masks import FamilyText
from figures.unit_scores import Firings
from sae_core.console import say
from sae_core.corpus import Document
from sae_core.demo.extract import cut
from sae_core.errors import TextError
from sae_core.gather import WARM_UP_SHARE
from sae_core.language_model import check_fits
from sae_core.window_stream import batched, iter_windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from sae_core.language_model import LanguageModel
    from sae_core.sae import SparseAutoencoder
    from sae_core.schema import SparseActs
    from sae_core.window_stream import WindowRow

SPLIT = "validation"
NEURONS = "neurons"
BATCH_WINDOWS = 32
MOST_BYTES = 20_000  # of a document; else three or four long ones would stand for a family
SAY_BATCHES = 50  # a line of progress each 300,000 tokens or so


class Units(Protocol):
    """The features of a dictionary, or the neurons, on the tokens of a text."""

    @property
    def name(self) -> str:
        """Of the dictionary, or `neurons`."""

    @property
    def n_units(self) -> int:
        """How many there are."""

    def firings(self, unit: int) -> Firings:
        """Give the tokens on which a unit is above 0, and how much."""


@dataclass(frozen=True)
class SparseUnits:
    """A dictionary's activations, compressed by feature."""

    name: str

    indptr: NDArray[np.int64]
    """(n_units + 1,) start of each feature's firings."""

    rows: NDArray[np.int32]
    """(nnz,) token of each."""

    acts: NDArray[np.float32]
    """(nnz,) its activation, > 0."""

    @property
    def n_units(self) -> int:
        """Number of features."""
        return len(self.indptr) - 1

    def firings(self, unit: int) -> Firings:
        """Give the tokens on which a feature fires."""
        which = slice(*self.indptr[unit : unit + 2].tolist())
        return Firings(self.rows[which], self.acts[which])


@dataclass(frozen=True)
class DenseUnits:
    """Activations of all units on all tokens."""

    name: str

    parts: tuple[NDArray[np.float16], ...]
    """(n_units, n) of some tokens each, in text order."""

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.parts[0])

    def firings(self, unit: int) -> Firings:
        """Give the tokens on which a unit is above 0."""
        column = np.concatenate([part[unit] for part in self.parts])
        rows = np.flatnonzero(column > 0)
        return Firings(rows, column[rows].astype(np.float32))


class Reading(NamedTuple):
    """A text, and what was seen on it."""

    text: FamilyText

    units: tuple[Units, ...]
    """The dictionaries in the order given, then the neurons."""


def read_documents(table: Path, cap_bytes: dict[str, int], other_bytes: int) -> pl.DataFrame:
    """Choose held-out documents.

    Args:
        table: Parquet with columns family, package, source and text, and perhaps split and sha256.
        cap_bytes: family -> bytes at which it is cut, after a whole document.
        other_bytes: the same for all other families.

    Returns:
        family, package, source, sha256, text, half (0 or 1); sorted by family, package and hash.

    Raises:
        TextError: no document is held out.
    """
    scanned = pl.scan_parquet(table)
    columns = scanned.collect_schema().names()
    if "split" in columns:
        scanned = scanned.filter(pl.col("split") == SPLIT)
    found = scanned.select("family", "package", "source", "text").collect()
    heads = [_head(text) for text in found["text"]]
    found = found.with_columns(text=pl.Series(heads, dtype=pl.Binary))
    size = pl.col("text").bin.size().cast(pl.Int64)
    found = found.filter(size > 0).unique("text", maintain_order=True)
    if found.is_empty():
        raise TextError(
            f"{table} has no document of the split {SPLIT!r}; give the documents.parquet of "
            "`python -m sae_core.demo.recipe extract`"
        )
    hashes = [sha256(text).hexdigest() for text in found["text"]]
    cap = pl.col("family").replace_strict(cap_bytes, default=other_bytes, return_dtype=pl.Int64)
    return (
        found.with_columns(sha256=pl.Series(hashes))
        .sort("sha256")
        .filter((size.cum_sum().over("family") - size) < cap)
        .sort("family", "package", "sha256")
        .with_columns(half=pl.int_range(pl.len()).over("family") % 2)
    )


def _head(text: bytes) -> bytes:
    pieces = cut(text.decode("utf-8", "replace"), MOST_BYTES, head_only=True)
    return "".join(pieces).encode()


def read_units(
    model: LanguageModel, saes: Sequence[SparseAutoencoder], documents: pl.DataFrame
) -> Reading:
    """Read documents with a model, its dictionaries and its neurons.

    Args:
        model: the language model.
        saes: dictionaries of one hook point.
        documents: as of `read_documents`.

    Raises:
        SaeError, ModelError: a dictionary does not fit the model.
        ValueError: the dictionaries read at different places, or there is none.
    """
    places = {str(check_fits(model, sae)) for sae in saes}
    if len(places) != 1:
        raise ValueError(f"dictionaries of one hook point were expected, got {sorted(places)}")
    (place,) = places
    rows: list[WindowRow] = []
    neurons: list[NDArray[np.float16]] = []
    found: list[list[SparseActs]] = [[] for _ in saes]
    for at, batch in enumerate(batched(_windows(model, documents), BATCH_WINDOWS)):
        ids, recorded = _padded(batch, model)
        with torch.inference_mode():
            acts = model.run_to_hook(ids, place).acts[recorded]  # (n_tokens, d_in)
            for sae, parts in zip(saes, found, strict=True):
                parts.append(sae.encode_sparse(acts))
            neurons.append(np.ascontiguousarray(acts.T.to(torch.float16).cpu().numpy()))
        rows += batch
        if at % SAY_BATCHES == SAY_BATCHES - 1:
            say(f"{sum(part.shape[1] for part in neurons):,} tokens are read ...")
    units = [
        _by_feature(sae.name, sae.config.d_sae, parts)
        for sae, parts in zip(saes, found, strict=True)
    ]
    return Reading(_text(documents, rows), (*units, DenseUnits(NEURONS, tuple(neurons))))


def _windows(model: LanguageModel, documents: pl.DataFrame) -> Iterator[WindowRow]:
    has_start = model.start_token is not None
    rows = documents.select("source", "text", "sha256").iter_rows()
    return iter_windows(
        (Document(*row) for row in rows),
        model.encode,
        n_first=model.n_ctx - has_start,
        n_ctx=model.n_ctx,
        warm_up=int(model.n_ctx * WARM_UP_SHARE),
        held_out=0,
        max_tokens=None,
    )


def _padded(windows: Sequence[WindowRow], model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Give windows side by side, and which of their tokens are recorded: (n_windows, n_ctx) both."""
    ids = np.zeros((len(windows), model.n_ctx), np.int64)
    recorded = np.zeros(ids.shape, np.bool_)
    for at, row in enumerate(windows):
        lead = int(row.first == 0 and model.start_token is not None)
        end = lead + len(row.token_ids)
        ids[at, :lead] = model.start_token or 0
        ids[at, lead:end] = row.token_ids
        recorded[at, lead + row.n_warm : end] = True
    return torch.from_numpy(ids), torch.from_numpy(recorded)


def _by_feature(name: str, d_sae: int, parts: list[SparseActs]) -> SparseUnits:
    """Compress by feature what was compressed by token."""
    counts = np.concatenate([np.diff(part.indptr) for part in parts])
    features = np.concatenate([part.indices for part in parts])
    order = np.argsort(features, kind="stable")
    rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]
    acts = np.concatenate([part.values for part in parts])[order]
    indptr = np.zeros(d_sae + 1, np.int64)
    np.cumsum(np.bincount(features, minlength=d_sae), out=indptr[1:])
    return SparseUnits(name, indptr, rows, acts)


def _text(documents: pl.DataFrame, rows: Sequence[WindowRow]) -> FamilyText:
    token_ids = np.concatenate([row.token_ids[row.n_warm :] for row in rows])
    byte_end = np.concatenate([row.byte_end[row.n_warm :] for row in rows])
    n_tokens = np.zeros(len(documents) + 1, np.int64)
    for row in rows:
        n_tokens[row.document.doc_id + 1] += len(row.token_ids) - row.n_warm
    kept = documents.select("family", "package", "source", "text", "half")
    return FamilyText(kept, np.cumsum(n_tokens), token_ids, byte_end)
