"""Train a transformer on a file of token ids, so that a killed run goes on where it was.

1. `train.bin` holds uint16 token ids, each document starting with id 0. Every epoch cuts it into
   windows at a new offset and shuffles them; the batch of step k depends on the seed and k alone.
2. AdamW; the learning rate warms up, stays, and falls linearly to 0 over the last part.
3. When a GPU's memory runs out, the windows of a batch go through in portions and their gradients
   are added up.
4. A checkpoint (weights, optimiser, step) is replaced whole every few hundred steps. Run again
   after a crash, the final weights are bit for bit those of an undisturbed run (same CPU kind, same
   number of threads).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sae_core.devices import Portions, choose_device, memory_said
from sae_core.errors import ModelError
from sae_core.files import reading, sha256_of, write_bytes
from sae_core.tensors import n_bytes
from sae_core.token_file import WindowSampler, read_token_ids, spread_windows
from sae_core.training import (
    Progress,
    load_checkpoint,
    only_writer,
    put_back,
    refuse_divergence,
    save_checkpoint,
    space_said,
    stop_said,
    tensors_of,
    to_stderr,
    trapezoid,
)
from sae_core.transformer import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    ModelConfig,
    Transformer,
    load_transformer,
    save_model,
)
from sae_core.unembed_loss import WINDOWS_A_SLICE, UnembedLoss, mean_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

ADAM_BETAS = (0.9, 0.95)  # 0.95: the second moment follows within ~20 steps, usual for short runs
SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class TrainModelConfig:
    """Everything that decides the weights, beside the text."""

    n_tokens: int
    """Tokens to train on; repeats the text when it is shorter."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Sizes of the transformer."""

    batch_windows: int = 32
    """Windows of n_ctx tokens a step."""

    lr: float = 3e-3
    """Learning rate of the stable phase."""

    weight_decay: float = 0.1
    """AdamW's decay of matrices; norms and biases have none."""

    warm_up_steps: int = 200
    """Steps of linear rise from 0 to lr."""

    decay_share: float = 0.3
    """Last share of the steps, over which the rate falls linearly to 0, in (0, 1]."""

    grad_clip: float = 1.0
    """Largest L2 norm of a step's whole gradient."""

    seed: int = 0
    """Seed of the weights and of the order of windows."""

    precision: str = "bfloat16"
    """`float32`, or `bfloat16` for the matrix products (weights and sums stay float32)."""

    checkpoint_every: int = 250
    """Steps between checkpoints."""

    validate_every: int = 250
    """Steps between rows of metrics.jsonl."""

    n_validation_windows: int = 512
    """Windows, spread evenly over the validation text, of each validation loss."""

    snapshots: tuple[int, ...] = ()
    """Numbers of tokens, each in 1..n_tokens, after which the weights so far are kept as float16."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train.

        Raises:
            ValueError: a number is out of its range, or the precision is unknown.
        """
        at_least_one = (
            "batch_windows",
            "checkpoint_every",
            "validate_every",
            "n_validation_windows",
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.n_steps < 1:
            raise ValueError(
                f"n_tokens must be at least one batch of {self.batch_tokens:,}, got "
                f"{self.n_tokens:,}"
            )
        if not (self.lr > 0 and self.grad_clip > 0 and self.weight_decay >= 0):
            raise ValueError("lr and grad_clip must be > 0 and weight_decay >= 0")
        if not (0 < self.decay_share <= 1 and self.warm_up_steps >= 0):
            raise ValueError("decay_share must be in (0, 1] and warm_up_steps >= 0")
        if self.precision not in {"float32", "bfloat16"}:
            raise ValueError(f"precision must be float32 or bfloat16, got {self.precision!r}")
        for n_tokens in self.snapshots:
            if not 1 <= n_tokens <= self.n_tokens:
                raise ValueError(
                    f"snapshots must be numbers of tokens in 1..{self.n_tokens:,}, got {n_tokens:,}"
                )

    @property
    def batch_tokens(self) -> int:
        """Tokens predicted in one step."""
        return self.batch_windows * self.model.n_ctx

    @property
    def n_steps(self) -> int:
        """Steps of the whole run."""
        return self.n_tokens // self.batch_tokens

    def lr_at(self, step: int) -> float:
        """Give the learning rate of a step, 0 <= step < n_steps.

        Example:
            >>> config = TrainModelConfig(n_tokens=1000 * 32 * 256, lr=1.0, warm_up_steps=10)
            >>> config.lr_at(0), config.lr_at(500), config.lr_at(850)
            (0.1, 1.0, 0.5)
        """
        return self.lr * trapezoid(
            step,
            n_steps=self.n_steps,
            warm_up_steps=self.warm_up_steps,
            decay_share=self.decay_share,
        )


class TrainModelResult(NamedTuple):
    """A trained model and how it went."""

    model: Transformer
    """The final weights."""

    metrics: list[dict[str, float]]
    """The rows of metrics.jsonl: step, n_tokens, losses in nats, lr, tokens_per_s."""


def train_model(
    train_bin: Path,
    validation_bin: Path,
    out_dir: Path,
    config: TrainModelConfig,
    *,
    tokenizer: Path | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> TrainModelResult:
    """Train to the end, or go on from the checkpoint in `out_dir`, and save the model there.

    Args:
        train_bin: uint16 token ids, little-endian; a document starts with id 0.
        validation_bin: the same, of documents that are not in train_bin.
        out_dir: gets checkpoint.safetensors, metrics.jsonl, the snapshots asked for as
            snapshots/N/ (N tokens seen), and at the end config.json and model.safetensors.
        config: all settings.
        tokenizer: tokenizer.json to be copied beside the weights.
        device: `cpu`, `cuda` or `cuda:N`.
        progress: is told one line now and then; None writes to stderr.

    Returns:
        The model and its curve.

    Raises:
        ValueError: the device has another name.
        ModelError: a file is unusable, the checkpoint was made with other settings, the loss is
            not finite, the GPU is absent, or its memory is too small for one window.
        StoreError: the tokenizer cannot be read, or `out_dir` not be written; or
            another process trains there.
    """
    place = choose_device(device)
    vocabulary = None if tokenizer is None else _bytes_of(tokenizer)
    n_ctx, d_vocab = config.model.n_ctx, config.model.d_vocab
    train_ids = read_token_ids(train_bin, n_ctx=n_ctx, d_vocab=d_vocab)
    sampler = WindowSampler(
        train_ids, n_ctx=n_ctx, batch_windows=config.batch_windows, seed=config.seed
    )
    validation = spread_windows(
        read_token_ids(validation_bin, n_ctx=n_ctx, d_vocab=d_vocab),
        n_ctx=n_ctx,
        n_most=config.n_validation_windows,
    )
    with only_writer(out_dir):
        with memory_said(place, ModelError):
            run = _Run(out_dir, config, _settings(config, train_bin), place, progress or to_stderr)
            run.resume()
            run.train(sampler, validation)
        run.save_model(vocabulary)
    return TrainModelResult(load_transformer(run.out_dir), run.metrics)


class _Run:
    """The state of a training run and its files."""

    def __init__(
        self,
        out_dir: Path,
        config: TrainModelConfig,
        settings: dict[str, Any],
        device: torch.device,
        progress: Callable[[str], None],
    ) -> None:
        self.out_dir = Path(out_dir)
        self.config = config
        self.settings = settings
        self.device = device
        self.progress = progress
        self.model = Transformer(config.model, seed=config.seed).to(device)
        self.optimiser = _optimiser(self.model, config)
        self.portions = self._portions(config.batch_windows)
        self.validation_portions = self._portions(WINDOWS_A_SLICE)
        self.step = self.kept_step = 0  # done, and done when the checkpoint was taken up
        self.metrics: list[dict[str, float]] = []

    def resume(self) -> None:
        """Take up the checkpoint, when there is one of the same settings."""
        take = partial(put_back, self.model, self.optimiser)
        done = load_checkpoint(self.out_dir, self.settings, take, ModelError)
        if done is None:
            return
        self.step = self.kept_step = done.step
        self.metrics = done.metrics
        self.progress(f"resuming at step {self.step} of {self.config.n_steps}")
        for n_tokens in self.config.snapshots:
            folder = self._snapshot_folder(n_tokens)
            if self._step_of(n_tokens) <= self.step and not (folder / CONFIG_FILE).exists():
                self.progress(
                    f"{folder} cannot be made: the checkpoint is already past {n_tokens:,} tokens; "
                    "to have it, train again in another folder"
                )

    def train(self, sampler: WindowSampler, validation: NDArray[np.int64]) -> None:
        """Step to the end; a row of metrics, a snapshot and a checkpoint now and then."""
        config = self.config
        losses: list[float] = []
        started = time.monotonic()
        with stop_said(self.out_dir, self.progress):
            while self.step < config.n_steps:
                losses.append(self._gradients(sampler.batch(self.step)))
                self._keep()
                self._update()
                self.step += 1
                if self.step % config.validate_every == 0 or self.step == config.n_steps:
                    speed = len(losses) * config.batch_tokens / (time.monotonic() - started)
                    self._record(losses, validation, speed)
                    losses, started = [], time.monotonic()
            self._keep()

    def save_model(self, vocabulary: bytes | None) -> None:
        """Write the finished model; the tokenizer first, the config last."""
        needed = n_bytes(self.model.state_dict()) + len(vocabulary or b"")
        with stop_said(self.out_dir, self.progress), space_said(self.out_dir, needed):
            if vocabulary is not None:
                write_bytes(self.out_dir / TOKENIZER_FILE, vocabulary)
            save_model(self.model, self.out_dir)

    def _portions(self, n_most: int) -> Portions:
        return Portions(n_most, "window", self.device, self.progress, ModelError)

    def _keep(self) -> None:
        """Write what is due of the weights so far, which have just given a finite loss."""
        if self.step == self.kept_step:
            return
        for n_tokens in self.config.snapshots:
            if self._step_of(n_tokens) == self.step:
                with space_said(self.out_dir, n_bytes(self.model.state_dict()) // 2):
                    save_model(self.model, self._snapshot_folder(n_tokens), dtype=torch.float16)
        if self.step % self.config.checkpoint_every == 0 or self.step == self.config.n_steps:
            done = Progress(self.step, self.metrics, tensors_of(self.model, self.optimiser))
            save_checkpoint(self.out_dir, done, self.settings, ModelError)

    def _snapshot_folder(self, n_tokens: int) -> Path:
        return self.out_dir / SNAPSHOTS / f"{n_tokens:011d}"

    def _step_of(self, n_tokens: int) -> int:
        """Give the number of steps after which so many tokens, or all, have been seen."""
        return min(-(-n_tokens // self.config.batch_tokens), self.config.n_steps)

    def _gradients(self, windows: NDArray[np.int64]) -> float:
        """Put a batch's clipped gradient in place; give its mean loss in nats, finite."""
        config = self.config
        ids = torch.from_numpy(windows).to(self.device)
        loss = self.portions.fit(lambda: self._add_gradients(ids), len(ids))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        refuse_divergence(
            {"loss": loss, "gradient norm": norm.item()},
            self.step,
            self.out_dir,
            f"lr {config.lr}, batch {config.batch_windows}, seed {config.seed}",
            ModelError,
        )
        return loss

    def _add_gradients(self, ids: Tensor) -> float:
        """Add up the gradients of a batch's portions: (windows, n_ctx + 1) ids to the mean loss."""
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for rows in self.portions.slices(len(ids)):
            loss = self._loss(ids[rows]) * ((rows.stop - rows.start) / len(ids))
            torch.autograd.backward(loss)
            total += loss.item()
        return total

    def _loss(self, ids: Tensor) -> Tensor:
        dtype = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            resid = self.model.run_through(ids[:, :-1])
        x = self.model.ln_final(resid.float()).flatten(0, 1)  # (batch * pos, d_model)
        targets = ids[:, 1:].flatten()
        loss: Tensor = UnembedLoss.apply(x, self.model.W_U, targets, dtype)  # type: ignore[no-untyped-call]
        return loss

    def _update(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        self.optimiser.step()

    def _record(self, losses: list[float], validation: NDArray[np.int64], speed: float) -> None:
        loss = mean_loss(self.model, validation, portions=self.validation_portions)
        said = f"lr {self.config.lr}, seed {self.config.seed}"
        refuse_divergence({"validation loss": loss}, self.step, self.out_dir, said, ModelError)
        row = {
            "step": self.step,
            "n_tokens": self.step * self.config.batch_tokens,
            "train_loss": round(sum(losses) / len(losses), 5),
            "validation_loss": round(loss, 5),
            "lr": round(self.config.lr_at(self.step - 1), 8),
            "tokens_per_s": round(speed),
        }
        self.metrics.append(row)
        self.progress(
            f"step {self.step}/{self.config.n_steps}  train {row['train_loss']:.4f}  "
            f"validation {row['validation_loss']:.4f} nats  {row['tokens_per_s']:,} tokens/s"
        )


def _settings(config: TrainModelConfig, train_bin: Path) -> dict[str, Any]:
    settings = json.loads(json.dumps(asdict(config)))
    for name in ("checkpoint_every", "validate_every", "n_validation_windows", "snapshots"):
        settings.pop(name)  # they decide no weight
    return {**settings, "train_sha256": sha256_of(train_bin)}


def _bytes_of(path: Path) -> bytes:
    with reading(path):
        return path.read_bytes()


def _optimiser(model: Transformer, config: TrainModelConfig) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=ADAM_BETAS, fused=True)
