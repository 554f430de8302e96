"""Train a TopK dictionary on a model's activations, so that a killed run goes on where it was.

1. Activations are scaled to unit mean squared distance from their mean, so that one learning rate
   fits all models; the scale is folded back into the weights at the end.
2. Decoder rows start as random unit vectors, the encoder as their transpose, b_dec at the geometric
   median.
3. Each step: reconstruct a batch through the k largest features; features that have been silent for
   long learn to reconstruct what is missing (the auxiliary loss), so that they come back to life.
4. Adam; before a step the gradient along each decoder row is removed, after it the rows have unit
   norm again.
5. When a GPU's memory runs out, a batch goes through in portions whose gradients are added up.
6. From a model: blocks of windows, spread over the whole text, are run to the hook point and their
   activations shuffled; a batch mixes hundreds of contexts, a block depends on seed and number.

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders"; Bricken et al. 2023 (b_dec,
unit rows).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from sae_core.activations import (
    ActivationSource,
    ModelSource,
    checked,
    geometric_median,
    source_of,
    unit_scale,
)
from sae_core.devices import Portions, choose_device, memory_said
from sae_core.errors import SaeError
from sae_core.files import sha256_of
from sae_core.language_model import hash_weights
from sae_core.sae import SaeConfig, SparseAutoencoder, save_sae
from sae_core.tensors import n_bytes
from sae_core.token_file import read_token_ids
from sae_core.topk_loss import BatchLoss, TopkLoss
from sae_core.training import (
    Progress,
    load_checkpoint,
    only_writer,
    refuse_divergence,
    save_checkpoint,
    space_said,
    stop_said,
    to_stderr,
    trapezoid,
)
from sae_core.transformer import WEIGHTS_FILE, load_transformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

ADAM_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class TrainSaeConfig:
    """Everything that decides the dictionary, beside model and text."""

    d_in: int
    """Width of the activations."""

    d_sae: int
    """Number of features."""

    k: int
    """Features active on a token."""

    n_activations: int
    """Activations to train on; repeats the data when they are fewer."""

    batch_size: int = 4096
    """Activations a step."""

    lr: float = 3e-3
    """Adam's learning rate on the plateau."""

    warm_up_steps: int = 200
    """Steps of linear rise from 0 to lr."""

    decay_share: float = 0.2
    """Last share of the steps, over which the rate falls linearly to 0, in (0, 1]."""

    dead_after: int = 1_000_000
    """Activations without firing after which a feature takes part in the auxiliary loss."""

    k_aux: int = 256
    """Silent features that reconstruct the error of a token; Gao et al. take d_in / 2."""

    seed: int = 0
    """Seed of weights and order."""

    precision: str = "bfloat16"
    """`float32`, or `bfloat16` for the matrix products (weights and sums stay float32)."""

    hook_point: str = "blocks.0.mlp.hook_post"
    """Where the activations are from."""

    block_windows: int = 512
    """Windows whose activations are shuffled together (512 x 256 x 512 float32 are 268 MB)."""

    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    record_every: int = 250
    """Steps between rows of metrics.jsonl."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train.

        Raises:
            ValueError: a number is out of its range, or the precision is unknown.
        """
        SaeConfig(self.d_in, self.d_sae, "topk", self.k)
        for name in ("batch_size", "dead_after", "k_aux", "block_windows", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.n_steps < 1 or self.record_every < 1:
            raise ValueError(
                f"n_activations must be at least one batch of {self.batch_size}, got "
                f"{self.n_activations}"
            )
        if not (self.lr > 0 and 0 < self.decay_share <= 1 and self.warm_up_steps >= 0):
            raise ValueError("lr must be > 0, decay_share in (0, 1], warm_up_steps >= 0")
        if self.precision not in {"float32", "bfloat16"}:
            raise ValueError(f"precision must be float32 or bfloat16, got {self.precision!r}")

    @property
    def n_steps(self) -> int:
        """Steps of the whole run."""
        return self.n_activations // self.batch_size


class TrainingResult(NamedTuple):
    """A trained dictionary and how it went."""

    sae: SparseAutoencoder
    """The final weights, in the units of the model's activations."""

    metrics: list[dict[str, float]]
    """One row now and then: step, n_activations, fvu, l0, n_dead, lr, activations_per_s."""


def train_sae(
    activations: NDArray[np.float32] | Iterator[NDArray[np.float32]],
    config: TrainSaeConfig,
    *,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Train a TopK dictionary on activations in memory, or on an iterator of batches.

    Args:
        activations: (n, d_in) float32, or an iterator of such batches, of which each is one step.
        config: all settings.
        device: `cpu`, `cuda` or `cuda:N`.
        progress: is told one line now and then; None is silent.

    Returns:
        The dictionary and its curve.

    Raises:
        ValueError: the device has another name.
        SaeError: the activations have another width, are not finite or are too few, training
            diverges, or a single row does not fit into the GPU's memory.
        ModelError: the GPU is absent.
    """
    place = choose_device(device)
    source = source_of(activations, batch_size=config.batch_size, seed=config.seed)
    with memory_said(place, SaeError):
        trainer = _Trainer(source, config, None, {}, device=place, say=progress or (lambda _: None))
        trainer.train()
    return TrainingResult(trainer.finished(""), trainer.metrics)


def train_sae_on_model(
    model_dir: Path,
    train_bin: Path,
    out_dir: Path,
    config: TrainSaeConfig,
    *,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Train a TopK dictionary on a model's activations, or go on from the checkpoint in `out_dir`.

    Args:
        model_dir: a folder written by `train_model`.
        train_bin: uint16 token ids; documents start with id 0.
        out_dir: gets checkpoint.safetensors and metrics.jsonl, and at the end cfg.json and
            sae_weights.safetensors.
        config: all settings.
        device: `cpu`, `cuda` or `cuda:N`.
        progress: is told one line now and then; None writes to stderr.

    Returns:
        The dictionary and its curve.

    Raises:
        ValueError: the device has another name.
        SaeError: the widths differ, the checkpoint was made with other settings, the model's
            activations are not finite, training diverges, or memory is too small for one window.
        ModelError: the model or the token file is unusable, or the GPU is absent.
        StoreError: `out_dir` cannot be written, or another process trains there.
    """
    place, say = choose_device(device), progress or to_stderr
    model = load_transformer(model_dir)
    if config.d_in != model.config.d_mlp:
        raise SaeError(
            f"d_in is {config.d_in}, but {config.hook_point} of {model_dir} is "
            f"{model.config.d_mlp} wide"
        )
    origin = {
        "model_sha256": sha256_of(model_dir / WEIGHTS_FILE),
        "train_sha256": sha256_of(train_bin),
    }
    with only_writer(out_dir), memory_said(place, SaeError):
        source = ModelSource(
            model.to(place),
            read_token_ids(train_bin, n_ctx=model.config.n_ctx, d_vocab=model.config.d_vocab),
            layer=int(config.hook_point.split(".")[1]),
            batch_size=config.batch_size,
            block_windows=config.block_windows,
            seed=config.seed,
            name=str(train_bin),
            progress=say,
        )
        trainer = _Trainer(source, config, out_dir, origin, device=place, say=say)
        trainer.resume()
        trainer.train()
        sae = trainer.finished(hash_weights(model))
        with stop_said(out_dir, say), space_said(out_dir, n_bytes(sae.state_dict())):
            save_sae(sae, out_dir)
    return TrainingResult(sae, trainer.metrics)


class _Trainer:
    """A dictionary in training: weights in scaled units, optimiser, silence counters."""

    def __init__(
        self,
        source: ActivationSource,
        config: TrainSaeConfig,
        out_dir: Path | None,
        origin: dict[str, Any],
        *,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self.source = source
        self.device = device
        self.config = config
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.settings = {**asdict(config), **origin}
        for name in ("checkpoint_every", "record_every"):
            self.settings.pop(name)  # they decide no weight
        self.say = say
        first = self._batch(0)
        self.scale = unit_scale(first)
        self.sae = _start(config, first * self.scale).to(device)
        self.loss = TopkLoss(
            self.sae, config.k, config.k_aux, config.dead_after, precision=config.precision
        )
        self.portions = Portions(None, "row", device, say, SaeError)
        self.optimiser = torch.optim.Adam(
            self.sae.parameters(), lr=config.lr, betas=ADAM_BETAS, fused=True
        )
        self.silent = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        self.step = self.kept_step = 0  # done, and done when the checkpoint was taken up
        self.metrics: list[dict[str, float]] = []

    def resume(self) -> None:
        """Take up the checkpoint, when there is one of the same settings."""
        assert self.out_dir is not None
        done = load_checkpoint(self.out_dir, self.sae, self.optimiser, self.settings, SaeError)
        if done is not None:
            self.step = self.kept_step = done.step
            self.metrics, self.silent = done.metrics, done.extra["silent"].to(self.device)
            self.say(f"resuming at step {self.step} of {self.config.n_steps}")

    def train(self) -> None:
        """Step to the end; a row of metrics and a checkpoint now and then."""
        batch = torch.empty(0)
        sums = torch.zeros(2, device=self.device)  # fvu and l0, over the steps since the last row
        n_steps, started = 0, time.monotonic()
        with stop_said(self.out_dir, self.say):
            while self.step < self.config.n_steps:
                batch = self._batch(self.step) * self.scale
                found = self._gradients(batch)
                self._keep()
                self._update(found)
                self.step += 1
                sums += torch.stack([found.fvu, found.l0])
                n_steps += 1
                is_last = self.step == self.config.n_steps
                if self.step % self.config.record_every == 0 or is_last:
                    speed = n_steps * len(batch) / (time.monotonic() - started)
                    self._record(sums / n_steps, speed)
                    sums, n_steps, started = torch.zeros_like(sums), 0, time.monotonic()
            if self.step > self.kept_step:
                self._gradients(batch)  # refuses last weights that are bad
                self._keep()

    @torch.no_grad()
    def finished(self, model_hash: str) -> SparseAutoencoder:
        """Give the dictionary in the units of the model's activations."""
        config = self.config
        sae = SparseAutoencoder(
            SaeConfig(
                d_in=config.d_in,
                d_sae=config.d_sae,
                activation="topk",
                k=config.k,
                hook_point=config.hook_point,
                model_hash=model_hash,
                seed=config.seed,
            )
        )
        sae.load_state_dict(self.sae.state_dict())
        sae.b_enc.div_(self.scale)
        sae.b_dec.div_(self.scale)
        return sae.eval()

    def _batch(self, step: int) -> Tensor:
        return checked(self.source.batch(step), step, d_in=self.config.d_in, device=self.device)

    def _keep(self) -> None:
        """Write the weights so far when it is time; their loss was finite a moment ago."""
        is_due = self.step % self.config.checkpoint_every == 0 or self.step == self.config.n_steps
        if self.out_dir is not None and is_due and self.step > self.kept_step:
            done = Progress(self.step, self.metrics, {"silent": self.silent})
            save_checkpoint(
                self.out_dir, self.sae, self.optimiser, done, self.settings, error=SaeError
            )

    def _gradients(self, x: Tensor) -> BatchLoss:
        """Put a batch's gradient in place; its loss is finite."""
        found = self.portions.fit(lambda: self._add_gradients(x), len(x))
        said = f"lr {self.config.lr}, k {self.config.k}, seed {self.config.seed}"
        refuse_divergence({"loss": found.total}, self.step, self.out_dir, said, SaeError)
        return found

    def _add_gradients(self, x: Tensor) -> BatchLoss:
        self.optimiser.zero_grad(set_to_none=True)
        return self.loss.add_gradients(x, self.silent, self.portions.slices(len(x)))

    @torch.no_grad()
    def _update(self, found: BatchLoss) -> None:
        self.silent = found.silent
        rate = trapezoid(
            self.step,
            n_steps=self.config.n_steps,
            warm_up_steps=self.config.warm_up_steps,
            decay_share=self.config.decay_share,
        )
        self.optimiser.param_groups[0]["lr"] = self.config.lr * rate
        W_dec, grad = self.sae.W_dec, self.sae.W_dec.grad
        assert grad is not None
        grad -= (grad * W_dec).sum(dim=1, keepdim=True) * W_dec
        self.optimiser.step()
        W_dec.copy_(functional.normalize(W_dec, dim=1))

    def _record(self, means: Tensor, speed: float) -> None:
        n_dead = int((self.silent > self.config.dead_after).sum())
        row = {
            "step": self.step,
            "n_activations": self.step * self.config.batch_size,
            "fvu": round(float(means[0]), 5),
            "l0": round(float(means[1]), 3),
            "n_dead": n_dead,
            "activations_per_s": round(speed),
        }
        self.metrics.append(row)
        said = (
            f"fvu {row['fvu']:.4f}  l0 {row['l0']:.1f}  silent {n_dead}  {speed:,.0f} activations/s"
        )
        self.say(f"step {self.step}/{self.config.n_steps}  {said}")


@torch.no_grad()
def _start(config: TrainSaeConfig, sample: Tensor) -> SparseAutoencoder:
    sae = SparseAutoencoder(SaeConfig(config.d_in, config.d_sae, "topk", config.k))
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.randn(config.d_sae, config.d_in, generator=generator)
    sae.W_dec.copy_(functional.normalize(rows, dim=1))
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_dec.copy_(geometric_median(sample))
    return sae
