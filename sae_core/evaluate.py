"""Measure a dictionary on text: how sparse, how exact, how much of the model's loss it keeps.

Each document is cut into windows of n_ctx tokens, the first one led by the model's start token.
Three losses are measured on the same predictions: the model untouched, the SAE spliced in at its
hook point, the hook point zeroed.

Source: Bricken et al. 2023, "How much of the model does our interpretation explain?"
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from sae_core.corpus import plan_documents
from sae_core.errors import TextError
from sae_core.language_model import check_fits, load_model
from sae_core.sae import load_sae

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from os import PathLike

    from numpy.typing import NDArray
    from torch import Tensor

    from sae_core.language_model import LanguageModel
    from sae_core.sae import SparseAutoencoder
    from sae_core.transformer import HookState

BATCH_WINDOWS = 8  # 8 x 256 x 4096 logits are 34 MB
ULTRALOW_DENSITY = (
    1e-5  # below it features are nearly never interpretable (Bricken et al. 2023: 1e-6 .. 1e-5)
)
SLAB_FEATURES = 1024  # of whose decoder rows all cosines are held at once
PAD = -1


@dataclass(frozen=True)
class EvaluateResult:
    """How good a dictionary is on some text."""

    sae: str
    """Its name."""

    n_tokens: int
    """Tokens read, start tokens left out; the denominator of the rates."""

    l0: float
    """Mean number of active features a token."""

    fvu: float
    """Squared error of the reconstruction / squared deviation from the mean activation."""

    loss_clean: float
    """Mean next-token cross-entropy of the untouched model, nats."""

    loss_sae: float
    """The same with the reconstruction in place of the activations, nats."""

    loss_zero: float
    """The same with zeros in place of the activations, nats."""

    loss_recovered: float | None
    """(loss_zero - loss_sae) / (loss_zero - loss_clean); None when zeroing costs nothing."""

    n_dead: int
    """Features that fired on none of the n_tokens."""

    n_ultralow: int
    """Features that fired, but on less than 1e-5 of the tokens."""

    dead_share: float
    """n_dead / d_sae."""

    norm_ratio: float
    """Sum of the reconstructions' lengths / sum of the activations'; below 1 is shrinkage."""

    decoder_cosine: float
    """Mean over features of the largest cosine between its decoder row and another's; 1: each has a copy."""

    density_histogram: dict[str, int]
    """Lower end of a half decade of log10 density, e.g. "-2.5" -> features in it; dead ones left out."""

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as they are printed by `--json`."""
        return asdict(self)


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
        SaeError, ModelError: model, dictionary and hook point do not fit.
        TextError: there are no two tokens in a row to predict.
    """
    at = str(check_fits(model, sae, hook_point))
    sums = _Sums(sae)
    for windows in _batches(documents, model.n_ctx, model.start_token):
        ids = torch.from_numpy(np.where(windows == PAD, 0, windows))
        state = model.run_to_hook(ids, at)
        targets = torch.from_numpy(windows[:, 1:].copy()).to(state.acts.device)
        is_text = windows != PAD
        is_text[:, 0] &= windows[:, 0] != (PAD if model.start_token is None else model.start_token)
        sums.add(model, state, torch.from_numpy(is_text), targets)
    return sums.result()


def evaluate_texts(
    texts: Sequence[str | PathLike[str]],
    *,
    sae: str,
    model: str | None = None,
    hook_point: str | None = None,
    skip_bad_rows: bool = False,
) -> EvaluateResult:
    """Measure a dictionary on texts; see `evaluate`.

    Args:
        texts: files, folders, globs or "-".
        sae: name or folder of the dictionary; "neurons" takes the raw neurons.
        model: name or folder of the model; None is the embedded one.
        hook_point: where the dictionary reads; None takes the place it was trained for.
        skip_bad_rows: count and skip unreadable rows of JSONL and Parquet inputs.

    Raises:
        TextError, SaeError, ModelError: see `evaluate`.
    """
    plan = plan_documents(texts, skip_bad_rows=skip_bad_rows)
    reader = load_model(model)
    dictionary = load_sae(sae, model=reader, hook_point=hook_point)
    documents = (reader.encode(document.data).token_ids for document in plan.read())
    return evaluate(reader, dictionary, documents, hook_point=hook_point)


class _Sums:
    """Running sums in float64."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae = sae
        self.losses = np.zeros(3)
        self.n_predicted = 0
        self.n_tokens = 0
        self.fires = torch.zeros(sae.config.d_sae, dtype=torch.int64)
        self.error = 0.0
        self.square = 0.0
        self.lengths = np.zeros(2)  # of x and x_hat
        self.total = torch.zeros(sae.config.d_in, dtype=torch.float64)

    @torch.no_grad()
    def add(self, model: LanguageModel, state: HookState, is_text: Tensor, targets: Tensor) -> None:
        """Add one batch of windows."""
        acts = self.sae.encode(state.acts)
        x_hat = self.sae.decode(acts)
        for at, spliced in enumerate((state.acts, x_hat, torch.zeros_like(x_hat))):
            self.losses[at] += _summed_loss(model, state._replace(acts=spliced), targets)
        self.n_predicted += int((targets != PAD).sum())
        kept = is_text.to(acts.device)
        x = state.acts[kept]  # (n_tokens, d_in)
        self.n_tokens += len(x)
        self.fires += (acts[kept] > 0).sum(dim=0).cpu()
        self.error += float((x - x_hat[kept]).double().square().sum())
        self.square += float(x.double().square().sum())
        self.lengths += [float(rows.norm(dim=1).double().sum()) for rows in (x, x_hat[kept])]
        self.total += x.double().sum(dim=0).cpu()

    def result(self) -> EvaluateResult:
        """Divide."""
        if self.n_predicted == 0:
            raise TextError("the text holds no two tokens in a row; give a longer one")
        n_dead = int((self.fires == 0).sum())
        is_rare = (self.fires > 0) & (self.fires < ULTRALOW_DENSITY * self.n_tokens)
        variance = self.square - float(self.total.square().sum()) / self.n_tokens
        clean, spliced, zero = (float(loss) for loss in self.losses / self.n_predicted)
        return EvaluateResult(
            sae=self.sae.name,
            n_tokens=self.n_tokens,
            l0=int(self.fires.sum()) / self.n_tokens,
            fvu=self.error / variance if variance > 0 else 0.0,
            loss_clean=clean,
            loss_sae=spliced,
            loss_zero=zero,
            loss_recovered=(zero - spliced) / (zero - clean) if zero != clean else None,
            n_dead=n_dead,
            n_ultralow=int(is_rare.sum()),
            dead_share=n_dead / self.sae.config.d_sae,
            norm_ratio=float(self.lengths[1] / self.lengths[0]) if self.lengths[0] else 1.0,
            decoder_cosine=_decoder_cosine(self.sae.W_dec.detach()),
            density_histogram=_histogram(self.fires, self.n_tokens),
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


def _histogram(fires: Tensor, n_tokens: int) -> dict[str, int]:
    """Count the features of each half decade of density, rarest first."""
    counts = Counter(math.floor(2 * math.log10(n / n_tokens)) / 2 for n in fires.tolist() if n)
    return {f"{low:.1f}": counts[low] for low in sorted(counts)}


def _batches(
    documents: Iterable[NDArray[np.integer]], n_ctx: int, start_token: int | None
) -> Iterator[NDArray[np.int64]]:
    """Cut documents into windows, padded with PAD: (<= BATCH_WINDOWS, n_ctx)."""
    rows: list[NDArray[np.int64]] = []
    for document in documents:
        lead = [] if start_token is None else [start_token]
        ids = np.concatenate([np.array(lead, np.int64), np.asarray(document, np.int64)])
        for first in range(0, len(ids), n_ctx):
            row = np.full(n_ctx, PAD, np.int64)
            part = ids[first : first + n_ctx]
            row[: len(part)] = part
            rows.append(row)
            if len(rows) == BATCH_WINDOWS:
                yield np.stack(rows)
                rows = []
    if rows:
        yield np.stack(rows)


def _summed_loss(model: LanguageModel, state: HookState, targets: Tensor) -> float:
    logits = model.logits(state)[:, :-1].flatten(0, 1)  # (batch * (pos - 1), d_vocab)
    return float(
        functional.cross_entropy(logits, targets.flatten(), ignore_index=PAD, reduction="sum")
    )
