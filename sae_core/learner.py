"""A dictionary in training, step by step: a batch of activations in, better weights out.

1. Activations are scaled to unit mean squared distance from their mean, so that one learning rate
   fits all models; the scale is folded back into the weights at the end.
2. Decoder rows start as directions of the data, the encoder as their transpose but small, b_dec at
   the geometric median; `l1` starts from random directions, as in its paper.
3. A step: the objective says which features fire; what they miss gives the gradient. Adam moves the
   features that fired; the gradient along each decoder row is removed before, and the rows have
   unit norm again after.
4. Features that have been silent for long learn, on some rows of each batch, to reconstruct what is
   missing (the auxiliary loss), so that they come back to life; where it weighs much, Adam's
   memory of it is wiped then. `l1` resamples them instead.

Sources: Bricken et al. 2023 (b_dec, unit rows, resampling); Gao et al. 2024, section A.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from sae_core.activations import geometric_median, unit_scale
from sae_core.active import Active, Aid, Missed
from sae_core.objectives import VARIANTS
from sae_core.sae import SaeConfig, SparseAutoencoder
from sae_core.sparse_engine import CpuEngine, TorchEngine, move_vector
from sae_core.train_loops import Rates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from sae_core.train_settings import TrainSaeConfig

KEEP_V = 0.999  # Adam's beta 2
AUX_ROWS = 8  # one row of a batch in so many takes part in the auxiliary loss
HEAVY = 4.0  # times the weight of the main loss: Adam's memory of such slopes is out of its scale
LEAST = 1e-12  # what is divided by; only a batch of equal rows has less


class BatchLoss(NamedTuple):
    """What one batch tells."""

    fvu: Tensor
    """Scalar: share of the batch's variance that the reconstruction misses."""

    l0: Tensor
    """Scalar: mean number of active features of a row."""


class _Seen(NamedTuple):
    """A batch on its way."""

    x: Tensor
    active: Active
    missed: Missed
    fvu: Tensor


class Learner:
    """Weights in scaled units, moments, and since when each feature is silent."""

    def __init__(
        self,
        config: TrainSaeConfig,
        first: Tensor,
        device: torch.device,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Start from some batches (n, d_in), best of at least d_sae rows."""
        self.config = config
        self.scale = unit_scale(first)
        first = first.cpu() * self.scale
        median = geometric_median(first)
        generator = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(first), generator=generator)
        rows = first[order[torch.arange(config.d_sae) % len(first)]] - median
        self.objective = VARIANTS[config.variant](config, device)
        enc, dec = (part.to(device) for part in self.objective.start(rows, generator))
        self.b_dec = median.to(device)
        self.b_dec_m, self.b_dec_v = torch.zeros_like(self.b_dec), torch.zeros_like(self.b_dec)
        engine = CpuEngine if device.type == "cpu" else TorchEngine
        self.engine = engine(enc, dec, say)
        self.silent = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        self.uses_aid = self.objective.uses_aid and config.aux_coefficient > 0

    def state(self) -> dict[str, Tensor]:
        """Give all that decides what comes next, by name."""
        own = {"b_dec": self.b_dec, "m.b_dec": self.b_dec_m, "v.b_dec": self.b_dec_v}
        return own | {"silent": self.silent} | self.engine.state() | self.objective.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave; nothing is taken when a tensor is missing.

        Raises:
            KeyError: a tensor is missing.
        """
        own = self.state()
        found = {name: state[name] for name in own}
        for name, tensor in own.items():
            tensor.copy_(found[name])
        self.engine.weights_changed()

    @torch.no_grad()
    def look(self, batch: Tensor) -> BatchLoss:
        """Reconstruct a batch (n, d_in), in the model's units; nothing is learnt yet."""
        x, variance = self.engine.centre(batch, self.scale, self.b_dec)
        active = self.objective.choose(self.engine, x)
        missed = self.engine.reconstruct(x, active, self.objective.ends)
        fvu = missed.errors[-1].sum() / variance.clamp_min(LEAST)
        self._seen = _Seen(x, active, missed, fvu)
        return BatchLoss(fvu, (active.acts > 0).sum() / len(x))

    @torch.no_grad()
    def learn(self, number: int, rate: float) -> None:
        """Learn from the batch that was looked at last.

        Args:
            number: of this step, from 1.
            rate: share of the full learning rate.
        """
        x, active, missed, fvu = self._seen
        fires = torch.bincount(active.ids[active.acts > 0], minlength=len(self.silent)) > 0
        if self.uses_aid and self._weight(float(fvu)) > HEAVY:
            self.engine.forget((fires & self._idle()).nonzero()[:, 0])
        self.silent = torch.where(fires, 0, self.silent + len(x))
        aid = self._aid(x, missed, float(fvu)) if self.uses_aid else None
        config = self.config
        rates = Rates(config.lr * rate, config.beta1, KEEP_V, 2 / len(x), number)
        missed = missed._replace(slopes=self.objective.penalise(active, missed.slopes, rates))
        self._move_b_dec(active, missed, rates)
        self.engine.move(x, active, missed, aid, rates)

    @torch.no_grad()
    def resample(self, batches: Iterable[Tensor], number: int) -> int:
        """Let features that have long been dead start anew where the loss is large.

        Args:
            batches: (n, d_in) each, in the model's units; their losses are measured.
            number: of the step before this.

        Returns:
            How many features started anew.

        Source: Bricken et al. 2023, "Neuron Resampling".
        """
        config = self.config
        dead = (self.silent >= config.resample_window * config.batch_size).nonzero()[:, 0]
        if len(dead) == 0:
            return 0
        rows, keys = self._seeds(batches, len(dead), number)
        engine = self.engine
        rows = rows[keys.argsort(descending=True)[: len(dead)]]
        dead = dead[: len(rows)]  # fewer inputs than dead features: the rest waits
        unit = functional.normalize(rows, dim=1)
        alive = torch.ones_like(self.silent, dtype=torch.bool)
        alive[dead] = False
        norms = engine.enc[alive].norm(dim=1)
        size = self.objective.newborn * (norms.mean() if len(norms) else torch.ones(()))
        engine.dec[dead], engine.enc[dead], engine.b_enc[dead] = unit, unit * size, 0.0
        engine.forget(dead)
        self.silent[dead] = 0
        engine.weights_changed()
        return len(dead)

    @torch.no_grad()
    def finished(self, model_hash: str) -> SparseAutoencoder:
        """Give the dictionary in the units of the model's activations."""
        config, fires = self.config, self.objective.inference()
        sae = SparseAutoencoder(
            SaeConfig(
                d_in=config.d_in,
                d_sae=config.d_sae,
                activation=fires.activation,
                k=fires.k,
                hook_point=config.hook_point,
                model_hash=model_hash,
                seed=config.seed,
            )
        )
        sae.W_enc.copy_(self.engine.enc.T)
        sae.W_dec.copy_(self.engine.dec)
        sae.b_enc.copy_(self.engine.b_enc / self.scale)
        sae.b_dec.copy_(self.b_dec / self.scale)
        if fires.threshold is not None:
            sae.threshold.copy_(fires.threshold / self.scale)
        return sae.eval()

    def _aid(self, x: Tensor, missed: Missed, fvu: float) -> Aid | None:
        """Let silent features reconstruct what the others miss of some rows.

        Its loss is the share of the batch's error that they miss, as the main one is the share of
        its variance; so it weighs 1 / fvu times as much beside squared errors. Those that come
        nearest to firing take part, half of them at most, with values below 0 too: most silent
        features never rise above 0, and would learn nothing.
        """
        idle = self._idle().nonzero()[:, 0]
        if len(idle) == 0 or fvu <= LEAST:
            return None
        n = max(1, len(x) // AUX_ROWS)
        engine, missing = self.engine, -missed.miss[-1, :n]
        hidden = x[:n] @ engine.enc[idle].T + engine.b_enc[idle]
        values, at = hidden.topk(min(self.config.k_aux, (len(idle) + 1) // 2), dim=1, sorted=False)
        dec = engine.dec[idle]
        miss = torch.zeros_like(hidden).scatter_(1, at, values) @ dec - missing
        miss *= self._weight(fvu) * len(x) / n / AUX_ROWS
        at, order = at.sort(dim=1)
        values, slopes = values.gather(1, order), (miss @ dec.T).gather(1, at)
        indptr = torch.arange(n + 1, device=x.device) * at.shape[1]
        return Aid(
            Active(indptr, idle[at].flatten().int(), values.flatten()), miss, slopes.flatten()
        )

    def _weight(self, fvu: float) -> float:
        """Give the weight of the auxiliary loss of a row that takes part, beside the main one's."""
        return self.config.aux_coefficient / max(fvu, LEAST) * AUX_ROWS

    def _idle(self) -> Tensor:
        return self.silent > self.config.dead_after

    def _move_b_dec(self, active: Active, missed: Missed, rates: Rates) -> None:
        by_feature = torch.zeros_like(self.engine.b_enc).index_add_(0, active.ids, missed.slopes)
        grad = missed.miss[0].sum(dim=0) - by_feature @ self.engine.enc
        move_vector(self.b_dec, grad, self.b_dec_m, self.b_dec_v, rates)

    def _seeds(self, batches: Iterable[Tensor], n_dead: int, number: int) -> tuple[Tensor, Tensor]:
        """Draw inputs with a chance that is proportional to their squared loss.

        Each input's key is uniform ** (1 / weight); the largest keys are such a draw, without
        replacement (Efraimidis and Spirakis 2006).
        """
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
        rows, keys = [], []
        for batch in batches:
            x, _ = self.engine.centre(batch, self.scale, self.b_dec)
            active = self.objective.choose(self.engine, x)
            missed = self.engine.reconstruct(x, active, self.objective.ends)
            loss = missed.errors[-1]
            drawn = torch.rand(len(x), generator=generator).to(x.device).clamp_min(1e-30)
            key = drawn.log() / loss.square().clamp_min(1e-30)
            best = key.topk(min(n_dead, len(key))).indices
            rows.append(self.objective.seeds(x[best], -missed.miss[-1, best]))
            keys.append(key[best])
            if len(rows) > 1:
                all_rows, all_keys = torch.cat(rows), torch.cat(keys)
                best = all_keys.topk(min(n_dead, len(all_keys))).indices
                rows, keys = [all_rows[best]], [all_keys[best]]
        return torch.cat(rows), torch.cat(keys)
