"""Train a transformer on a file of token ids, so that a killed run goes on where it was.

1. `train.bin` holds uint16 token ids, each document starting with id 0. Every epoch cuts it into
   windows at a new offset and shuffles them; the batch of step k depends on the seed and k alone.
2. AdamW; the learning rate warms up, stays, and falls linearly to 0 over the last part.
3. The unembedding and the loss are computed together, a slice of tokens at a time, so that the
   logits of a batch (32 x 256 x 4096) never leave the cache.
4. A checkpoint (weights, optimiser, step) is replaced whole every few hundred steps. Run again
   after a crash, the final weights are bit for bit those of an undisturbed run (same CPU kind, same
   number of threads).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from sae_core.errors import ModelError
from sae_core.files import sha256_of
from sae_core.token_file import WindowSampler, read_token_ids, spread_windows
from sae_core.training import (
    Progress,
    load_checkpoint,
    refuse_divergence,
    save_checkpoint,
    to_stderr,
    trapezoid,
)
from sae_core.transformer import ModelConfig, Transformer, load_transformer, save_model

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

ADAM_BETAS = (0.9, 0.95)  # 0.95: the second moment follows within ~20 steps, usual for short runs
LOSS_SLICE = 256  # tokens, 4 MB of logits: they stay in cache; 61k tokens/s against 34k at 2048
WINDOWS_A_SLICE = 32  # validation windows read at once


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


class UnembedLoss(torch.autograd.Function):
    """Mean next-token cross-entropy of normed residuals; the logits are never held whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_U: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Give the mean loss in nats.

        Args:
            ctx: autograd's memory between the two passes.
            x: (n, d_model) normed residuals.
            W_U: (d_model, d_vocab).
            targets: (n,) next token ids.
            dtype: of the matrix products.

        Returns:
            A scalar.
        """
        weights, inputs = W_U.to(dtype), x.to(dtype)
        grad_x, grad_W = torch.empty_like(x), torch.zeros_like(W_U)
        total = torch.zeros((), device=x.device)
        for at in range(0, len(x), LOSS_SLICE):
            rows = slice(at, at + LOSS_SLICE)
            target = targets[rows, None]
            probs = torch.softmax(inputs[rows] @ weights, dim=-1, dtype=torch.float32)
            of_target = probs.gather(1, target)  # (slice, 1)
            total -= of_target.log().sum()
            grad_logits = probs.scatter_(1, target, of_target - 1).to(dtype)
            grad_x[rows] = grad_logits @ weights.T
            grad_W += inputs[rows].T @ grad_logits
        ctx.save_for_backward(grad_x.div_(len(x)), grad_W.div_(len(x)))
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass made."""
        grad_x, grad_W = ctx.saved_tensors
        return grad_x * grads[0], grad_W * grads[0], None, None


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
        out_dir: gets checkpoint.safetensors, metrics.jsonl, and at the end config.json and
            model.safetensors.
        config: all settings.
        tokenizer: tokenizer.json to be copied beside the weights.
        device: `cpu` or a CUDA device.
        progress: is told one line now and then; None writes to stderr.

    Returns:
        The model and its curve.

    Raises:
        ModelError: a file is unusable, the checkpoint was made with other settings, or the loss is
            not finite.
    """
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
    settings = _settings(config, train_bin)
    run = _Run(out_dir, config, settings, torch.device(device), progress or to_stderr)
    run.resume()
    run.train(sampler, validation)
    save_model(run.model, out_dir, tokenizer=tokenizer)
    return TrainModelResult(load_transformer(out_dir), run.metrics)


@torch.no_grad()
def mean_loss(model: Transformer, windows: NDArray[np.int64]) -> float:
    """Give the mean next-token cross-entropy in nats, computed in float32.

    Args:
        model: the transformer.
        windows: (n, n_ctx + 1) token ids.

    Returns:
        Nats a token.
    """
    device = model.W_U.device
    total: float = 0.0
    for at in range(0, len(windows), WINDOWS_A_SLICE):
        ids = torch.from_numpy(windows[at : at + WINDOWS_A_SLICE]).to(device)
        x = model.ln_final(model.run_through(ids[:, :-1])).flatten(0, 1)  # (batch * pos, d_model)
        targets = ids[:, 1:].flatten()
        for first in range(0, len(x), LOSS_SLICE):
            rows = slice(first, first + LOSS_SLICE)
            logits = x[rows] @ model.W_U
            total += functional.cross_entropy(logits, targets[rows], reduction="sum").item()
    n_predicted: int = windows[:, 1:].size
    return total / n_predicted


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
        self.progress = progress
        self.model = Transformer(config.model, seed=config.seed).to(device)
        self.optimiser = _optimiser(self.model, config)
        self.step = 0
        self.metrics: list[dict[str, float]] = []

    def resume(self) -> None:
        """Take up the checkpoint, when there is one of the same settings."""
        done = load_checkpoint(self.out_dir, self.model, self.optimiser, self.settings, ModelError)
        if done is not None:
            self.step, self.metrics = done.step, done.metrics
            self.progress(f"resuming at step {self.step} of {self.config.n_steps}")

    def save(self) -> None:
        """Replace the checkpoint and the curve."""
        progress = Progress(self.step, self.metrics, {})
        save_checkpoint(self.out_dir, self.model, self.optimiser, progress, self.settings)

    def train(self, sampler: WindowSampler, validation: NDArray[np.int64]) -> None:
        """Step to the end; a row of metrics and a checkpoint now and then."""
        config = self.config
        losses: list[float] = []
        started = time.monotonic()
        while self.step < config.n_steps:
            losses.append(self._one_step(sampler.batch(self.step)))
            self.step += 1
            is_last = self.step == config.n_steps
            if self.step % config.validate_every == 0 or is_last:
                speed = len(losses) * config.batch_tokens / (time.monotonic() - started)
                self._record(losses, validation, speed)
                losses, started = [], time.monotonic()
            if self.step % config.checkpoint_every == 0 or is_last:
                self.save()

    def _one_step(self, windows: NDArray[np.int64]) -> float:
        device = self.model.W_U.device
        ids = torch.from_numpy(windows).to(device)
        dtype = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            resid = self.model.run_through(ids[:, :-1])
        x = self.model.ln_final(resid.float()).flatten(0, 1)  # (batch * pos, d_model)
        targets = ids[:, 1:].flatten()
        loss: Tensor = UnembedLoss.apply(x, self.model.W_U, targets, dtype)  # type: ignore[no-untyped-call]
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        config = self.config
        refuse_divergence(
            {"loss": loss.item(), "gradient norm": norm.item()},
            self.step,
            self.out_dir,
            f"lr {config.lr}, batch {config.batch_windows}, seed {config.seed}",
            ModelError,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        self.optimiser.step()
        return loss.item()

    def _record(self, losses: list[float], validation: NDArray[np.int64], speed: float) -> None:
        row = {
            "step": self.step,
            "n_tokens": self.step * self.config.batch_tokens,
            "train_loss": round(sum(losses) / len(losses), 5),
            "validation_loss": round(mean_loss(self.model, validation), 5),
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
    for name in ("checkpoint_every", "validate_every", "n_validation_windows"):
        settings.pop(name)  # they decide no weight
    return {**settings, "train_sha256": sha256_of(train_bin)}


def _optimiser(model: Transformer, config: TrainModelConfig) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=ADAM_BETAS, fused=True)
