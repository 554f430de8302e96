"""Windows -> one finished shard of a run: tokens, features and promotions in files.

1. Windows go through the model in batches of one fixed shape, so that bytes do not depend on the
   text's length.
2. What is not a finite number stops the run at once, before it is counted or written; the document
   and token are named.
3. Tokens are written, and handed to the running sums; the shard's checksums come last.
"""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
import polars as pl
import torch

from sae_core.errors import ModelError
from sae_core.files import sha256_of, write_parquet
from sae_core.running_sums import joined_tables
from sae_core.schema import Shard, TokenTable
from sae_core.store import DOCUMENT_SCHEMA, PARTS, select_tokens, write_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from sae_core.language_model import LanguageModel
    from sae_core.logits import LogitEffects
    from sae_core.running_sums import RunningSums
    from sae_core.sae import SparseAutoencoder
    from sae_core.schema import GatherSettings, SparseActs
    from sae_core.window_stream import DocumentRow, WindowRow

BATCH_WINDOWS = (
    32  # windows the model reads at once; fixed, so that bytes do not depend on the text's length
)


class _Batch(NamedTuple):
    """Windows side by side, padded: all arrays (BATCH_WINDOWS, n_ctx)."""

    ids: NDArray[np.int64]
    """Tokens read, the start token included."""

    recorded: NDArray[np.bool_]
    """Whether a token is recorded: no start token, no warm-up, no padding."""

    following: NDArray[np.int64]
    """The token after each; 0 where has_next is not."""

    has_next: NDArray[np.bool_]
    """Whether the next token is in the same window."""


class ShardWriter:
    """What turns windows into shards: everything that is loaded once."""

    def __init__(
        self,
        run: Path,
        settings: GatherSettings,
        *,
        model: LanguageModel,
        sae: SparseAutoencoder,
        effects: LogitEffects,
        sums: RunningSums,
    ) -> None:
        self.run = run
        self.settings = settings
        self.model = model
        self.sae = sae
        self.effects = effects
        self.sums = sums

    def write(self, name: str, windows: list[WindowRow]) -> Shard:
        """Compute one shard and write its files.

        Raises:
            ModelError: the model or the dictionary gives a number that is not finite.
            StoreError: the disk is full, or not to be written.
        """
        table = self.compute(windows)
        part = self.run / PARTS / name
        shutil.rmtree(part, ignore_errors=True)
        self.write_files(self.run, name, windows, table)
        self.sums.add(name, counted_tokens(windows, table))
        files = [self.run / f"tokens/{name}.parquet", *sorted(part.rglob("*.parquet"))]
        digests = {str(file.relative_to(self.run)): sha256_of(file) for file in files}
        return Shard(name, len(table.token_ids), len(windows), digests)

    def compute(self, windows: list[WindowRow]) -> TokenTable:
        """Read windows with the model and the dictionary; nothing is written.

        Raises:
            ModelError: the model or the dictionary gives a number that is not finite.
        """
        tables = [
            self._table(windows[at : at + BATCH_WINDOWS])
            for at in range(0, len(windows), BATCH_WINDOWS)
        ]
        return joined_tables(tables)

    def write_files(
        self, folder: Path, name: str, windows: list[WindowRow], table: TokenTable
    ) -> None:
        """Write a shard's tokens and documents below a folder."""
        write_tokens(folder / f"tokens/{name}.parquet", table, keep_acts=self.settings.keep_acts)
        write_parquet(folder / PARTS / name / "documents.parquet", document_rows(windows))

    def _table(self, windows: list[WindowRow]) -> TokenTable:
        batch = _batch_of(windows, self.settings.n_ctx, self.model.start_token)
        recorded = batch.recorded
        acts, scale = self._read(torch.from_numpy(batch.ids), torch.from_numpy(recorded))
        is_bad = _is_bad(acts, acts.values, scale)
        if is_bad.any():
            at = int(np.nonzero(recorded)[0][np.argmax(is_bad)])
            self._refuse(windows[at], self._first_bad(batch.ids[at]))
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            promotions = self.effects.promotions(acts, batch.following[recorded], scale)
        promotions[np.repeat(~batch.has_next[recorded], np.diff(acts.indptr))] = 0.0
        is_bad = _is_bad(acts, promotions, scale)
        if is_bad.any():
            at, place = (int(axis[np.argmax(is_bad)]) for axis in np.nonzero(recorded))
            self._refuse(windows[at], place)
        columns = _columns(windows)
        return TokenTable._make([*columns, acts.indptr, acts.indices, acts.values, promotions])

    def _read(self, ids: Tensor, kept: Tensor) -> tuple[SparseActs, NDArray[np.floating]]:
        """Give the features of the kept positions, and the final norm's scale there."""
        with torch.inference_mode():
            state = self.model.run_to_hook(ids, self.settings.hook_point)
            acts = self.sae.encode_sparse(state.acts[kept])
            return acts, self.model.final_scale(state)[kept].numpy()

    def _first_bad(self, ids: NDArray[np.int64]) -> int:
        """Find the place of the token at which a window's numbers stop to be finite.

        A masked position may still spoil earlier ones (0 times infinity), so that only ever shorter
        starts of the window tell.
        """
        good, bad = 0, len(ids)
        while bad - good > 1:
            middle = (good + bad) // 2
            start = torch.from_numpy(ids[None, :middle])
            acts, scale = self._read(start, torch.ones_like(start, dtype=torch.bool))
            is_bad = _is_bad(acts, acts.values, scale).any()
            good, bad = (good, middle) if is_bad else (middle, bad)
        return bad - 1

    def _refuse(self, window: WindowRow, place: int) -> NoReturn:
        lead = int(window.first == 0 and self.model.start_token is not None)
        raise ModelError(
            f"model {self.model.name} with SAE {self.sae.name} gives numbers that are not finite at "
            f"token {max(window.first + place - lead, 0)} of document {window.document.source}; leave that "
            "document out and gather into a new run"
        )


def counted_tokens(windows: list[WindowRow], table: TokenTable) -> TokenTable:
    """Give the tokens of a shard that are counted, without the held-out documents."""
    held_out = np.array([row.document.held_out for row in windows], dtype=np.bool_)
    return select_tokens(table, ~held_out[table.window_ids - windows[0].window_id])


def document_rows(windows: list[WindowRow]) -> pl.DataFrame:
    """Give the rows of documents.parquet for the documents of a shard, its own tokens counted."""
    n_tokens: Counter[int] = Counter()
    rows: dict[int, DocumentRow] = {}
    for window in windows:
        rows[window.document.doc_id] = window.document
        n_tokens[window.document.doc_id] += len(window.token_ids) - window.n_warm
    records = [row._asdict() | {"n_tokens": n_tokens[key]} for key, row in rows.items()]
    return pl.DataFrame(records, schema=DOCUMENT_SCHEMA)


def _is_bad(
    acts: SparseActs, values: NDArray[np.float32], scale: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Say where the norm's scale, which every activation enters, or a feature's value is not finite."""
    is_bad: NDArray[np.bool_] = ~np.isfinite(scale)
    where = ~np.isfinite(values)
    if where.any():
        is_bad[np.repeat(np.arange(len(scale)), np.diff(acts.indptr))[where]] = True
    return is_bad


def _batch_of(windows: list[WindowRow], n_ctx: int, start: int | None) -> _Batch:
    ids = np.zeros((BATCH_WINDOWS, n_ctx), dtype=np.int64)
    recorded = np.zeros(ids.shape, dtype=np.bool_)
    following = np.zeros(ids.shape, dtype=np.int64)
    has_next = np.zeros(ids.shape, dtype=np.bool_)
    for at, row in enumerate(windows):
        lead = int(row.first == 0 and start is not None)
        n_read = len(row.token_ids)
        ids[at, :lead] = 0 if start is None else start
        ids[at, lead : lead + n_read] = row.token_ids
        recorded[at, lead + row.n_warm : lead + n_read] = True
        following[at, lead : lead + n_read - 1] = row.token_ids[1:]
        has_next[at, lead : lead + n_read - 1] = True
    return _Batch(ids, recorded, following, has_next)


def _columns(windows: list[WindowRow]) -> list[np.ndarray]:
    def joined(values: list[np.ndarray], kind: type[np.generic]) -> np.ndarray:
        return np.concatenate(values).astype(kind)

    sizes = [len(row.token_ids) - row.n_warm for row in windows]
    return [
        np.repeat([row.document.doc_id for row in windows], sizes).astype(np.uint32),
        np.repeat([row.window_id for row in windows], sizes).astype(np.uint32),
        joined(
            [row.first + np.arange(row.n_warm, len(row.token_ids)) for row in windows], np.uint32
        ),
        joined([row.token_ids[row.n_warm :] for row in windows], np.uint32),
        joined([row.byte_start[row.n_warm :] for row in windows], np.int64),
        joined([row.byte_end[row.n_warm :] for row in windows], np.int64),
    ]
