"""The kinds of dictionary that can be trained: which features fire on a batch, and what that costs.

All share one reconstruction loss. They differ in what fires, in what is added to the slope of the
loss by each activation, and in what is left of them after training: a `topk`, `relu` or `jumprelu`
dictionary, as `sae_core.sae` reads it.

Sources: L1, Bricken et al. 2023; TopK, Gao et al. 2024; JumpReLU, Rajamanoharan et al. 2024;
BatchTopK, Bussmann et al. 2024; Matryoshka, Bussmann et al. 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from sae_core.sparse_engine import move_vector

if TYPE_CHECKING:
    from torch import Tensor

    from sae_core.active import Active
    from sae_core.sparse_engine import TorchEngine
    from sae_core.train_loops import Rates
    from sae_core.train_settings import TrainSaeConfig

NOISE = 1.0  # length of what is added to a start of unit length; no two are then the same
FIRST_NORM = 0.8  # of encoder rows, times sqrt(k); found by trial
TYPICAL_K = 16  # where there is no k
LEVELS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of Matryoshka; Bussmann et al. 2025
KEEP_THRESHOLD = 0.99  # a batch; of BatchTopK's running mean
MARGIN = 0.8  # of the last threshold: the next batch's is nearly always above it
FIRST_THRESHOLD = 1e-3  # of JumpReLU, on inputs of unit scale
BANDWIDTH = 0.05  # of JumpReLU's kernel, on inputs of unit scale


class Inference(NamedTuple):
    """What a trained dictionary does with the hidden layer."""

    activation: str
    """`topk`, `relu` or `jumprelu`."""

    k: int | None
    """Of `topk`."""

    threshold: Tensor | None
    """(d_sae,) of `jumprelu`, on scaled inputs."""


class Topk:
    """The k largest features of each row fire."""

    uses_aid = True
    newborn = 1.0  # encoder norm of a new feature, of the mean; less is never in the top k

    def __init__(self, config: TrainSaeConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.ends = [config.d_sae]

    def start(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give the first encoder and decoder (d_sae, d_in), from as many centred activations.

        Directions of the data keep features alive that random ones would lose. k features that see
        much the same must not overshoot together, so the encoder starts small.
        """
        noise = torch.randn(rows.shape, generator=generator) * NOISE / rows.shape[1] ** 0.5
        dec = functional.normalize(functional.normalize(rows, dim=1) + noise, dim=1)
        return dec * FIRST_NORM / (self.config.k or TYPICAL_K) ** 0.5, dec

    def choose(self, engine: TorchEngine, x: Tensor) -> Active:
        """Give the features that take part, and their activations."""
        assert self.config.k is not None
        return engine.largest(x, self.config.k)

    def penalise(self, active: Active, slopes: Tensor, rates: Rates) -> Tensor:  # noqa: ARG002
        """Give the slopes for the encoder: half the derivative of the whole loss."""
        return slopes

    def seeds(self, x: Tensor, missed: Tensor) -> Tensor:  # noqa: ARG002
        """Give the directions in which dead features start anew, of inputs x (n, d_in).

        What is missed of an input, unlike the input, is not seen by the features that live; so a
        newborn does not fire everywhere, beside them.
        """
        return missed

    def state(self) -> dict[str, Tensor]:
        """Give what a checkpoint needs, by name; loaded in place."""
        return {}

    def inference(self) -> Inference:
        """Say how the trained dictionary fires."""
        return Inference("topk", self.config.k, None)


class BatchTopk(Topk):
    """The k * n largest activations of a batch fire; later those above their mean threshold."""

    def __init__(self, config: TrainSaeConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.threshold = torch.zeros(2, device=device)  # running mean; weight of what it is made of

    def choose(self, engine: TorchEngine, x: Tensor) -> Active:
        """Give the features that take part, and their activations."""
        assert self.config.k is not None
        n_wanted = self.config.k * len(x)
        floor = MARGIN * self._mean()
        active = engine.above(x, floor.expand(self.config.d_sae).contiguous())
        while len(active.ids) < n_wanted and floor > 0:
            floor = floor / 2 if floor > 1e-3 * self._mean() else torch.zeros_like(floor)
            active = engine.above(x, floor.expand(self.config.d_sae).contiguous())
        n_spare = len(active.ids) - n_wanted
        if n_spare > 0:
            least = active.acts.kthvalue(n_spare + 1).values
            active = active.where(active.acts >= least)
        return active

    def penalise(self, active: Active, slopes: Tensor, rates: Rates) -> Tensor:  # noqa: ARG002
        """Give the slopes for the encoder, and remember the least activation that fired."""
        if len(active.ids) > 0:
            new = torch.stack([active.acts.min(), active.acts.new_ones(())])
            self.threshold.lerp_(new, 1 - KEEP_THRESHOLD)
        return slopes

    def state(self) -> dict[str, Tensor]:
        """Give what a checkpoint needs, by name; loaded in place."""
        return {"threshold": self.threshold}

    def inference(self) -> Inference:
        """Say how the trained dictionary fires."""
        return Inference("jumprelu", None, self._mean().expand(self.config.d_sae).clone())

    def _mean(self) -> Tensor:
        return self.threshold[0] / self.threshold[1].clamp_min(1e-12)


class MatryoshkaBatchTopk(BatchTopk):
    """BatchTopK whose first features also reconstruct alone: general ones first, then details."""

    def __init__(self, config: TrainSaeConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.ends = sorted({max(1, int(share * config.d_sae)) for share in LEVELS})


class JumpRelu(Topk):
    """Features fire above a threshold of their own, which is learnt; L0 is penalised.

    The step of the non-linearity has no slope; a rectangle of width BANDWIDTH around the threshold
    stands in for it.
    """

    uses_aid = False

    def __init__(self, config: TrainSaeConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.threshold = torch.full((config.d_sae,), FIRST_THRESHOLD, device=device)
        self.m, self.v = torch.zeros_like(self.threshold), torch.zeros_like(self.threshold)
        self._near = self._fires = torch.empty(0)

    def choose(self, engine: TorchEngine, x: Tensor) -> Active:
        """Give the features that take part, and their activations."""
        found = engine.above(x, (self.threshold - BANDWIDTH / 2).clamp_min(0))
        threshold = self.threshold[found.ids]
        self._fires = found.acts > threshold
        self._near = (found.acts - threshold).abs() < BANDWIDTH / 2
        return found._replace(acts=torch.where(self._fires, found.acts, 0))

    def penalise(self, active: Active, slopes: Tensor, rates: Rates) -> Tensor:
        """Give the slopes for the encoder, and move the thresholds by theirs."""
        assert self.config.l0_coefficient is not None
        threshold = self.threshold[active.ids]
        by_step = slopes * threshold + self.config.l0_coefficient / 2
        near = torch.where(self._near, -by_step / BANDWIDTH, 0)
        grad = torch.zeros_like(self.threshold).index_add_(0, active.ids, near)
        move_vector(self.threshold, grad, self.m, self.v, rates)
        self.threshold.clamp_min_(0)
        return torch.where(self._fires, slopes, 0)

    def state(self) -> dict[str, Tensor]:
        """Give what a checkpoint needs, by name; loaded in place."""
        return {"threshold": self.threshold, "threshold_m": self.m, "threshold_v": self.v}

    def inference(self) -> Inference:
        """Say how the trained dictionary fires."""
        return Inference("jumprelu", None, self.threshold)


class L1(Topk):
    """Features fire above 0; the sum of activations is penalised, and the dead are resampled."""

    uses_aid = False
    newborn = 0.2  # Bricken et al. 2023

    def start(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give the first encoder and decoder (d_sae, d_in): Kaiming-uniform, and of unit norm."""
        drawn = torch.rand(2, *rows.shape, generator=generator) * 2 - 1
        return drawn[0] / rows.shape[1] ** 0.5, functional.normalize(drawn[1], dim=1)

    def seeds(self, x: Tensor, missed: Tensor) -> Tensor:  # noqa: ARG002
        """Give the directions in which dead features start anew: the inputs, as in the paper."""
        return x

    def choose(self, engine: TorchEngine, x: Tensor) -> Active:
        """Give the features that take part, and their activations."""
        return engine.above(x, x.new_zeros(self.config.d_sae))

    def penalise(self, active: Active, slopes: Tensor, rates: Rates) -> Tensor:  # noqa: ARG002
        """Give the slopes for the encoder: half the derivative of the whole loss."""
        assert self.config.l1_coefficient is not None
        rise = min(1.0, rates.step / max(1, self.config.sparsity_warm_up_steps))
        return slopes + rise * self.config.l1_coefficient / 2

    def inference(self) -> Inference:
        """Say how the trained dictionary fires."""
        return Inference("relu", None, None)


VARIANTS: dict[str, type[Topk]] = {
    "topk": Topk,
    "batch_topk": BatchTopk,
    "matryoshka": MatryoshkaBatchTopk,
    "jumprelu": JumpRelu,
    "l1": L1,
}
