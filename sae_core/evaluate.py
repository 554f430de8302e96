"""Measure dictionaries on text: how sparse, how exact, how much of the model's loss they keep.

1. Each document is cut into windows of n_ctx tokens, the first one led by the model's start token.
2. The model runs once for all dictionaries that read at one place. Three losses are measured on the
   same predictions: the model untouched, a dictionary spliced in at its hook point, the hook point
   zeroed.
3. Sums are kept by document; documents drawn with replacement give the intervals.

Source: Bricken et al. 2023, "How much of the model does our interpretation explain?"; for the bias,
Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders".
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from sae_core.corpus import plan_documents
from sae_core.errors import ModelError, TextError
from sae_core.evaluate_result import ULTRALOW_DENSITY, EvaluateResult
from sae_core.evaluate_sums import (
    DICTIONARY_COLUMNS,
    TEXT_COLUMNS,
    DocumentSums,
    Ratios,
    interval,
    ratios,
    resampled,
    window_batches,
)
from sae_core.language_model import check_fits, load_model
from sae_core.sae import load_sae

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from os import PathLike

    from numpy.typing import NDArray
    from torch import Tensor

    from sae_core.evaluate_sums import Table, WindowBatch
    from sae_core.language_model import LanguageModel
    from sae_core.sae import SparseAutoencoder
    from sae_core.transformer import HookState

BATCH_WINDOWS = 8  # 2,048 tokens: their activations, and their rows of 4,096 features, are small
SLAB_FEATURES = 1024  # of whose decoder rows all cosines are held at once


def evaluate(
    model: LanguageModel,
    sae: SparseAutoencoder,
    documents: Iterable[NDArray[np.integer]],
    *,
    hook_point: str | None = None,
) -> EvaluateResult:
    """Measure a dictionary on documents.

    Args:
        model: the language model.
        sae: the dictionary.
        documents: (n,) token ids of each document, without a start token.
        hook_point: where the dictionary reads; None takes the place it was trained for.

    Returns:
        Sparsity, error and losses, over all tokens.

    Raises:
        SaeError, ModelError: model, dictionary and hook point do not fit, or the model gives
            numbers that are not finite.
        TextError: there are no two tokens in a row to predict.
    """
    return evaluate_many(model, [sae], documents, hook_point=hook_point)[0]


def evaluate_many(
    model: LanguageModel,
    saes: Sequence[SparseAutoencoder],
    documents: Iterable[NDArray[np.integer]],
    *,
    hook_point: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[EvaluateResult]:
    """Measure several dictionaries on the same documents; see `evaluate`.

    Args:
        model: runs once for all dictionaries that read at one place.
        saes: the dictionaries.
        documents: (n,) token ids of each document, without a start token.
        hook_point: where the dictionaries read; None takes the place each was trained for.
        progress: is called with the tokens read so far.

    Returns:
        One result a dictionary, in their order.

    Raises:
        SaeError, ModelError, TextError: see `evaluate`.
    """
    places = [str(check_fits(model, sae, hook_point)) for sae in saes]
    readers = {
        at: _Place(model, at, [sae for sae, place in zip(saes, places, strict=True) if place == at])
        for at in dict.fromkeys(places)
    }
    batches = window_batches(
        documents, n_ctx=model.n_ctx, start_token=model.start_token, size=BATCH_WINDOWS
    )
    n_tokens = 0
    for batch in batches:
        for reader in readers.values():
            reader.add(batch)
        n_tokens += int(batch.is_text.sum())
        if progress:
            progress(n_tokens)
    found = {at: iter(reader.results()) for at, reader in readers.items()}
    return [next(found[place]) for place in places]


def evaluate_texts(
    texts: Sequence[str | PathLike[str]],
    *,
    saes: Sequence[str],
    model: str | None = None,
    hook_point: str | None = None,
    skip_bad_rows: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[EvaluateResult]:
    """Measure dictionaries on texts; see `evaluate_many`.

    Args:
        texts: files, folders, globs or "-".
        saes: names or folders of the dictionaries; "neurons" takes the raw neurons.
        model: name or folder of the model; None is the embedded one.
        hook_point: where the dictionaries read; None takes the place each was trained for.
        skip_bad_rows: count and skip unreadable rows of JSONL and Parquet inputs.
        progress: is called with the tokens read so far.

    Raises:
        TextError, SaeError, ModelError: see `evaluate`.
    """
    plan = plan_documents(texts, skip_bad_rows=skip_bad_rows)
    reader = load_model(model)
    dictionaries = [load_sae(sae, model=reader, hook_point=hook_point) for sae in saes]
    documents = (reader.encode(document.data).token_ids for document in plan.read())
    return evaluate_many(reader, dictionaries, documents, hook_point=hook_point, progress=progress)


class _Run(NamedTuple):
    """A batch of windows at a hook point."""

    batch: WindowBatch
    state: HookState
    is_read: Tensor
    """(n_windows, n_ctx) whether there is a token."""

    is_text: Tensor
    """(n_read,) whether a token that is read is of the document."""

    window: NDArray[np.int64]
    """(n_text,) window of each token of a document."""


class _Place:
    """A hook point of a model, with the dictionaries that read there."""

    def __init__(self, model: LanguageModel, at: str, saes: Sequence[SparseAutoencoder]) -> None:
        self.model = model
        self.at = at
        self.sums = DocumentSums(len(TEXT_COLUMNS) + model.width(at))
        self.dictionaries = [_Dictionary(model, sae) for sae in saes]

    @torch.no_grad()
    def add(self, batch: WindowBatch) -> None:
        """Add a batch of windows."""
        ids = torch.from_numpy(np.where(batch.is_read, batch.token_ids, 0))
        state = self.model.run_to_hook(ids, self.at)
        is_read = torch.from_numpy(batch.is_read)
        is_text = torch.from_numpy(batch.is_text[batch.is_read])
        run = _Run(batch, state, is_read, is_text, np.nonzero(batch.is_text)[0])
        x = state.acts[torch.from_numpy(batch.is_text)].double()
        losses = [
            _window_losses(self.model, run, acts)
            for acts in (state.acts, torch.zeros_like(state.acts))
        ]
        columns = [
            batch.is_text.sum(axis=1),
            np.maximum(batch.is_read.sum(axis=1) - 1, 0),
            _by_window(run, x.square().sum(dim=1)),
            *losses,
        ]
        of_x = x.new_zeros(len(batch.documents), x.shape[1])
        of_x.index_add_(0, torch.from_numpy(run.window).to(x.device), x)
        self.sums.add(batch.documents, np.column_stack([*columns, of_x.cpu().numpy()]))
        for dictionary in self.dictionaries:
            dictionary.add(run)

    def results(self) -> list[EvaluateResult]:
        """Divide, and draw documents for the intervals."""
        text = self.sums.table()
        if text[:, TEXT_COLUMNS.index("n_predicted")].sum() == 0:
            raise TextError("the text holds no two tokens in a row; give a longer one")
        bad = np.flatnonzero(~np.isfinite(text).all(axis=1))
        if len(bad):
            raise ModelError(
                f"model {self.model.name} gives numbers that are not finite on document "
                f"{bad[0] + 1} of {len(text)}; leave it out, or take a model whose weights are sound"
            )
        tables = [dictionary.sums.table() for dictionary in self.dictionaries]
        draws = resampled(text, tables)
        return [
            dictionary.result(text, table, drawn)
            for dictionary, table, drawn in zip(self.dictionaries, tables, draws, strict=True)
        ]


class _Dictionary:
    """What one dictionary adds up to."""

    def __init__(self, model: LanguageModel, sae: SparseAutoencoder) -> None:
        self.model = model
        self.sae = sae
        self.sums = DocumentSums(len(DICTIONARY_COLUMNS))
        self.fires = np.zeros(sae.config.d_sae, np.int64)
        self.lengths = np.zeros(2)  # of x and x_hat
        self.squares = 0.0  # of x_hat
        self.products = 0.0  # of x and x_hat

    def add(self, run: _Run) -> None:
        """Add a batch of windows."""
        x = run.state.acts[run.is_read]  # (n_read, d_in)
        acts = self.sae.encode_sparse(x)
        x_hat = self.sae.decode_sparse(acts)
        spliced = torch.zeros_like(run.state.acts)
        spliced[run.is_read] = x_hat
        n_active, is_text = np.diff(acts.indptr), run.is_text.numpy()
        self.fires += np.bincount(
            acts.indices[np.repeat(is_text, n_active)], minlength=len(self.fires)
        )
        x, x_hat = x[run.is_text].double(), x_hat[run.is_text].double()
        self.lengths += [float(rows.norm(dim=1).sum()) for rows in (x, x_hat)]
        self.squares += float(x_hat.square().sum())
        self.products += float((x * x_hat).sum())
        columns = [
            np.bincount(run.window, n_active[is_text], minlength=len(run.batch.documents)),
            _by_window(run, (x - x_hat).square().sum(dim=1)),
            _window_losses(self.model, run, spliced),
        ]
        self.sums.add(run.batch.documents, np.column_stack(columns))

    def result(self, text: Table, table: Table, draws: Ratios) -> EvaluateResult:
        """Divide the sums of all documents."""
        whole, own = text.sum(axis=0), table.sum(axis=0)
        n_tokens, n_predicted, _, clean, zero = whole[: len(TEXT_COLUMNS)].tolist()
        measures: dict[str, Any] = {}
        for name, (value,), drawn in zip(
            Ratios._fields, ratios(whole[None], own[None]), draws, strict=True
        ):
            low, high = interval(drawn)
            measures |= {name: None if np.isnan(value) else float(value)}
            measures |= {f"{name}_low": low, f"{name}_high": high}
        n_dead = int((self.fires == 0).sum())
        is_rare = (self.fires > 0) & (self.fires < ULTRALOW_DENSITY * n_tokens)
        return EvaluateResult(
            sae=self.sae.name,
            n_features=len(self.fires),
            n_documents=len(text),
            n_tokens=int(n_tokens),
            loss_clean=clean / n_predicted,
            loss_sae=float(own[-1]) / n_predicted,
            loss_zero=zero / n_predicted,
            n_dead=n_dead,
            n_ultralow=int(is_rare.sum()),
            dead_share=n_dead / len(self.fires),
            norm_ratio=float(self.lengths[1] / self.lengths[0]) if self.lengths[0] else 1.0,
            reconstruction_bias=self.squares / self.products if self.products else None,
            decoder_cosine=_decoder_cosine(self.sae.W_dec.detach()),
            density_histogram=_histogram(self.fires, int(n_tokens)),
            **measures,
        )


def _decoder_cosine(W_dec: Tensor) -> float:
    """Give the mean of the largest cosine of each row with another: (d_sae, d_in), a slab at a time."""
    if len(W_dec) < 2:
        return 0.0
    rows = functional.normalize(W_dec, dim=1)
    largest = []
    for first in range(0, len(rows), SLAB_FEATURES):
        cosines = rows[first : first + SLAB_FEATURES] @ rows.T
        cosines.diagonal(first).fill_(-1)
        largest.append(cosines.amax(dim=1))
    return float(torch.cat(largest).mean())


def _histogram(fires: NDArray[np.int64], n_tokens: int) -> dict[str, int]:
    """Count the features of each half decade of density, rarest first."""
    counts = Counter(math.floor(2 * math.log10(n / n_tokens)) / 2 for n in fires.tolist() if n)
    return {f"{low:.1f}": counts[low] for low in sorted(counts)}


def _by_window(run: _Run, of_tokens: Tensor) -> NDArray[np.float64]:
    """Add up a number of each token of a document, (n_text,), by window: (n_windows,)."""
    weights = of_tokens.cpu().numpy()
    return np.bincount(run.window, weights, minlength=len(run.batch.documents)).astype(np.float64)


def _window_losses(model: LanguageModel, run: _Run, acts: Tensor) -> NDArray[np.float64]:
    """Give each window's summed loss, (n_windows,) nats, with `acts` at the hook point.

    One window at a time: its logits, 256 x 4096 numbers, then stay in the processor's cache.
    """
    found = []
    for row, ids in enumerate(run.batch.token_ids):
        at = slice(row, row + 1), slice(0, int(run.batch.is_read[row].sum()))
        state = run.state._replace(acts=acts[at], resid_mid=run.state.resid_mid[at])
        logits = model.logits(state)[0, :-1]  # (pos - 1, d_vocab)
        targets = torch.from_numpy(ids[1 : len(logits) + 1]).to(logits.device)
        found.append(float(functional.cross_entropy(logits, targets, reduction="sum")))
    return np.array(found)
