"""The loss of a TopK dictionary in training: a batch in, its gradient added to the weights.

1. A batch is reconstructed through the k largest features; the loss is the share of the batch's
   variance that this misses.
2. Features that have been silent for long learn to reconstruct what is missing (the auxiliary
   loss), so that they come back to life.
3. When memory runs out, the rows go through in portions. The sums that the loss divides by are of
   the whole batch, and found in a pass before; so the gradient is the same up to rounding.

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section A.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from sae_core.sae import SparseAutoencoder

AUX_COEFFICIENT = 1 / 32  # Gao et al. 2024, section A.2
LEAST = 1e-12  # what is divided by; only a batch of equal rows has less


class BatchLoss(NamedTuple):
    """What one batch tells, beside the gradient that it leaves on the weights."""

    total: float
    """Share of the variance missed, plus the auxiliary loss."""

    fvu: Tensor
    """Scalar: share of the variance missed."""

    l0: Tensor
    """Scalar: mean number of active features of a row."""

    silent: Tensor
    """(d_sae,) int64 rows since each feature fired last, this batch included."""


class _Pass(NamedTuple):
    """A portion on its way through the dictionary."""

    pre_acts: Tensor
    """(rows, d_sae) before ReLU and TopK."""

    error: Tensor
    """(rows, d_in) float32, what the k features miss."""

    fires: Tensor
    """(d_sae,) int64 rows on which each feature is active."""


class _Whole(NamedTuple):
    """Sums over all rows of a batch."""

    error: Tensor
    """Scalar: squared error."""

    fires: Tensor
    """(d_sae,) int64 rows on which each feature is active."""


@dataclass(frozen=True)
class TopkLoss:
    """The loss and its settings."""

    sae: SparseAutoencoder
    """Its weights get the gradients."""

    k: int
    """Features active on a row."""

    k_aux: int
    """Silent features that reconstruct the error of a row."""

    dead_after: int
    """Rows without firing after which a feature is silent."""

    precision: str
    """`float32`, or `bfloat16` for the matrix products."""

    def add_gradients(self, x: Tensor, silent: Tensor, portions: list[slice]) -> BatchLoss:
        """Add the gradient of a batch to that of the weights.

        Args:
            x: (rows, d_in) activations in the dictionary's units.
            silent: (d_sae,) int64 rows since each feature fired last, before this batch.
            portions: of the rows, in order; those of one go through together.

        Returns:
            The loss and what is known of the features after this batch.
        """
        variance = (x - x.mean(dim=0)).square().sum().clamp_min(LEAST)
        whole = self._whole(x, portions) if len(portions) > 1 else None
        total, fvu = 0.0, variance.new_zeros(())
        for rows in portions:
            with self._autocast(x):
                made = self._through(x[rows])
                sums = whole or _Whole(made.error.detach().square().sum(), made.fires)
                now_silent = torch.where(sums.fires > 0, 0, silent + len(x))
                missed = made.error.square().sum() / variance
                aux = self._aux_loss(made, now_silent, sums.error)
                loss = missed + AUX_COEFFICIENT * aux
            torch.autograd.backward(loss)
            total += loss.item()
            fvu = fvu + missed.detach()
        return BatchLoss(total, fvu, sums.fires.sum() / len(x), now_silent)

    @torch.no_grad()
    def _whole(self, x: Tensor, portions: list[slice]) -> _Whole:
        error = x.new_zeros(())
        fires = torch.zeros(self.sae.W_dec.shape[0], dtype=torch.int64, device=x.device)
        for rows in portions:
            with self._autocast(x):
                made = self._through(x[rows])
            error += made.error.square().sum()
            fires += made.fires
        return _Whole(error, fires)

    def _autocast(self, x: Tensor) -> torch.autocast:
        use_bfloat16 = self.precision == "bfloat16"
        return torch.autocast(x.device.type, torch.bfloat16, enabled=use_bfloat16)

    def _through(self, x: Tensor) -> _Pass:
        sae = self.sae
        centre = sae.b_dec.detach()  # x has no gradient, so this saves one of six matrix products
        pre_acts = (x - centre) @ sae.W_enc + (sae.b_enc - (sae.b_dec - centre) @ sae.W_enc)
        values, indices = torch.relu(pre_acts).topk(self.k, dim=-1, sorted=False)
        acts = torch.zeros_like(pre_acts).scatter(1, indices, values)
        error = x - (acts @ sae.W_dec).float() - sae.b_dec
        return _Pass(pre_acts, error, (acts.detach() > 0).sum(dim=0))

    def _aux_loss(self, made: _Pass, silent: Tensor, error_of_all: Tensor) -> Tensor:
        """Give the share of the batch's error that silent features, at their best, miss here."""
        idle = (silent > self.dead_after).nonzero()[:, 0]
        error = made.error.detach()
        if len(idle) == 0:
            return error.new_zeros(())
        hidden = torch.relu(made.pre_acts[:, idle].float())
        values, indices = hidden.topk(min(self.k_aux, len(idle)), dim=-1, sorted=False)
        acts = torch.zeros_like(hidden).scatter(1, indices, values)
        missed = error - (acts @ self.sae.W_dec[idle]).float()
        return missed.square().sum() / error_of_all.clamp_min(LEAST)
