"""Dictionaries for `sae_worlds.py`: trained by us or by SAELens, matched in L0; and untrained ones.

All are trained for as many steps, on the same rows, each at the learning rate that suits its
trainer. What decides how sparse they are is given for TopK and its kin, and searched for where it is
a cost: L0 falls about as a power of it, so that a few secant steps in logarithms find it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch.nn import functional
from worker import Worker

from sae_core.learner import Learner
from sae_core.sae import SaeConfig, SparseAutoencoder, load_sae
from sae_core.train_sae import train_sae
from sae_core.train_settings import NEEDS, TrainSaeConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

PEER = Path(__file__).with_name("saelens_worlds.py")
D_SAE = 128
TARGET = 4.0  # L0 of all dictionaries, and of the true features
BATCH, WARM_UP, DECAY_SHARE, DEAD_AFTER = 256, 100, 0.2, 80  # rows; steps; of the steps; steps
RATES = {
    "ours": {"topk": 3e-2, "batch_topk": 1e-2, "matryoshka": 1e-2, "jumprelu": 3e-3, "l1": 3e-2},
    "SAELens": {"topk": 1e-2, "batch_topk": 1e-2, "matryoshka": 1e-2, "jumprelu": 3e-3, "l1": 1e-2},
}  # each the one with the best F1 of those that world_rates.py tries
RESAMPLED = ("jumprelu", "l1")  # of ours: without an auxiliary loss
RESAMPLE_INPUTS = 16 * BATCH
FIRST_COST = {
    "ours": {"jumprelu": 0.0105, "l1": 0.38},
    "SAELens": {"jumprelu": 1.6, "l1": 3.4},
}  # where the search starts
TRIES, NEAR = 5, 0.03  # trainings of a search at most; of TARGET: L0 is near enough
POWER = -0.5  # of the cost, that L0 falls with: a first guess
BOUND = 4.0  # factor by which a cost is changed at most in one step of the search


class Tuned(NamedTuple):
    """What a search ends with."""

    value: float
    """k, or the cost."""

    sae: SparseAutoencoder
    """The dictionary that was trained with it."""


class Trainer(Protocol):
    """Who trains."""

    name: str

    def train(
        self, x: NDArray[np.float32], variant: str, value: float, seed: int
    ) -> SparseAutoencoder:
        """Train a dictionary on rows (n, d_in); value is k or the cost."""


class Ours:
    """The trainer of this package."""

    name = "ours"

    def __init__(self, n_steps: int, rates: Mapping[str, float] = RATES["ours"]) -> None:
        self.n_steps = n_steps
        self.rates = rates

    def train(
        self, x: NDArray[np.float32], variant: str, value: float, seed: int
    ) -> SparseAutoencoder:
        """Train a dictionary on rows (n, d_in); value is k or the cost."""
        sae = train_sae(x, self.config(x, variant, value, seed)).sae
        return sae.requires_grad_(requires_grad=False)

    def config(
        self, x: NDArray[np.float32], variant: str, value: float, seed: int
    ) -> TrainSaeConfig:
        """Give the settings of a training."""
        needed = NEEDS[variant]
        more: dict[str, Any] = {needed: round(value) if needed == "k" else value}
        if variant in RESAMPLED:
            more["resample_at"] = (self.n_steps // 4, self.n_steps // 2)
            more["resample_window"] = DEAD_AFTER
            more["resample_inputs"] = RESAMPLE_INPUTS
        return TrainSaeConfig(
            d_in=x.shape[1],
            d_sae=D_SAE,
            n_activations=self.n_steps * BATCH,
            variant=variant,
            batch_size=BATCH,
            lr=self.rates[variant],
            warm_up_steps=WARM_UP,
            decay_share=DECAY_SHARE,
            dead_after=DEAD_AFTER * BATCH,
            seed=seed,
            **more,
        )

    def train_from_truth(
        self, x: NDArray[np.float32], directions: NDArray[np.float64], seed: int
    ) -> SparseAutoencoder:
        """Train a BatchTopK dictionary that starts from the true directions: a ceiling."""
        config = self.config(x, "batch_topk", TARGET, seed)
        rows = torch.from_numpy(x)
        learner = Learner(config, rows[:D_SAE], torch.device("cpu"))
        truth = torch.from_numpy(directions.astype(np.float32))
        state = learner.state() | {"enc": truth, "dec": truth}
        learner.load(state)
        generator = torch.Generator().manual_seed(seed)
        n_decay = DECAY_SHARE * self.n_steps
        for step in range(1, self.n_steps + 1):
            learner.look(rows[torch.randint(len(rows), (BATCH,), generator=generator)])
            learner.learn(step, min(1.0, step / WARM_UP, (self.n_steps - step) / n_decay))
        return learner.finished("").requires_grad_(requires_grad=False)


class SaeLens:
    """SAELens, in a process of its own."""

    name = "SAELens"

    def __init__(
        self, python: str, folder: Path, n_steps: int, rates: Mapping[str, float] = RATES["SAELens"]
    ) -> None:
        self.folder = folder
        self.rates = rates
        self.steps = {
            "n": n_steps,
            "batch": BATCH,
            "warm_up": WARM_UP,
            "decay": round(DECAY_SHARE * n_steps),
            "dead_after": DEAD_AFTER,
        }
        self.worker = Worker(self.name, [python, str(PEER)], is_quiet=True)

    def train(
        self, x: NDArray[np.float32], variant: str, value: float, seed: int
    ) -> SparseAutoencoder:
        """Train a dictionary on rows (n, d_in); value is k or the cost."""
        rows, out = self.folder / "rows.npy", self.folder / "sae"
        np.save(rows, x, allow_pickle=False)
        given = {"rows": str(rows), "out": str(out), "variant": variant, "value": value}
        steps = self.steps | {"lr": self.rates[variant]}
        self.ask("train", **given, seed=seed, d_sae=D_SAE, steps=steps)
        return load_sae(out)

    def ask(self, do: str, **words: Any) -> Any:
        """Let it do something; see `saelens_worlds.py`."""
        return json.loads(self.worker.ask(json.dumps({"do": do, **words})))

    def __enter__(self) -> Self:
        """Give itself; the process ends with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.worker.end()


def tuned(
    trainer: Trainer, variant: str, x: NDArray[np.float32], unseen: NDArray[np.float32], seed: int
) -> Tuned:
    """Train a dictionary whose L0 on unseen rows is near the target, if its variant has a cost."""
    if NEEDS[variant] == "k":
        return Tuned(TARGET, trainer.train(x, variant, TARGET, seed))
    best: tuple[float, Tuned] | None = None
    cost, points = FIRST_COST[trainer.name][variant], []
    for _ in range(TRIES):
        sae = trainer.train(x, variant, cost, seed)
        off = math.log(max(l0_of(sae, unseen), 1e-3) / TARGET)
        if best is None or abs(off) < best[0]:
            best = abs(off), Tuned(cost, sae)
        if abs(off) < NEAR:
            break
        points.append((math.log(cost), off))
        cost = math.exp(_next(points))
    assert best is not None
    return best[1]


def _next(points: list[tuple[float, float]]) -> float:
    """Give the logarithm of the next cost, of (log cost, log L0 / target) so far."""
    at, off = points[-1]
    slope = POWER
    if len(points) > 1 and at != points[-2][0]:
        slope = (off - points[-2][1]) / (at - points[-2][0])
    slope = min(slope, POWER / 4)  # L0 never rises with the cost; a flat stretch is chance
    step = -off / slope
    return at + max(-math.log(BOUND), min(math.log(BOUND), step))


def l0_of(sae: SparseAutoencoder, x: NDArray[np.float32]) -> float:
    """Give the mean number of features that fire on rows."""
    return float((sae.encode(torch.from_numpy(x)) > 0).sum(dim=1).float().mean())


def untrained(x: NDArray[np.float32], seed: int) -> dict[str, SparseAutoencoder]:
    """Give dictionaries that nobody trained: each the k largest products with some unit rows."""
    rows = torch.from_numpy(x)
    mean = rows.mean(dim=0)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(D_SAE, x.shape[1], generator=generator)
    some = rows[torch.randperm(len(rows), generator=generator)[:D_SAE]] - mean
    axes = torch.linalg.svd(rows - mean, full_matrices=False).Vh
    starts = {
        "random directions": noise,
        "rows of the data": some,
        "principal axes, both ways": torch.cat([axes, -axes])[:D_SAE],
    }
    return {name: with_rows(functional.normalize(dec, dim=1), mean) for name, dec in starts.items()}


def with_rows(dec: torch.Tensor, mean: torch.Tensor) -> SparseAutoencoder:
    """Give a TopK dictionary whose encoder is its decoder's transpose."""
    sae = SparseAutoencoder(SaeConfig(dec.shape[1], len(dec), "topk", k=round(TARGET)))
    sae.requires_grad_(requires_grad=False)
    sae.W_dec.copy_(dec)
    sae.W_enc.copy_(dec.T)
    sae.b_dec.copy_(mean)
    return sae.eval()
