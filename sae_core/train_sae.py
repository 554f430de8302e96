"""Train dictionaries on a model's activations, so that a killed run goes on where it was.

1. Batches come from an array, an iterator, a stored file of activations, or a model: there, blocks
   of windows, spread over the whole text, are run to the hook point and their activations
   shuffled; a batch mixes hundreds of contexts, a block depends on seed and number.
2. Several dictionaries can learn from one pass over the same batches.
3. Each keeps a checkpoint of its own, and goes on from it to the same weights.

What a step does stands in `sae_core.learner`.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sae_core.activations import ActivationSource, ModelSource, checked, source_of
from sae_core.devices import choose_device, memory_said
from sae_core.errors import ModelError, SaeError
from sae_core.files import sha256_of, write_json
from sae_core.language_model import hash_weights
from sae_core.learner import BatchLoss, Learner
from sae_core.memory import refuse_less
from sae_core.prune import keep_most_used
from sae_core.sae import TRAINING_FILE, SparseAutoencoder, save_sae
from sae_core.schema import HookPoint
from sae_core.sparse_engine import threads
from sae_core.tensors import n_bytes
from sae_core.token_file import read_token_ids
from sae_core.train_memory import N_COPIES, block_bytes, rows_at_once
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
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from sae_core.train_settings import TrainSaeConfig
    from sae_core.transformer import Transformer

N_JUDGED = 4_000_000  # activations after the last step, on which features are seen to fire or not
SHARED = ("d_in", "n_activations", "batch_size", "block_windows", "hook_point", "seed")


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
    """Train a dictionary on activations in memory, or on an iterator of batches.

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
    say = progress or (lambda _: None)
    n_rows = rows_at_once([config], 0, place, say)
    with memory_said(place, SaeError):
        trainer = _Trainer(source, config, None, {}, device=place, say=say, n_rows=n_rows)
        _train(source, [trainer], place)
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
    """Train a dictionary on a model's activations, or go on from the checkpoint in `out_dir`.

    Args:
        model_dir: a folder written by `train_model`.
        train_bin: uint16 token ids; documents start with id 0.
        out_dir: gets checkpoint.safetensors and metrics.jsonl, and at the end training.json (all
            settings that decide the weights), cfg.json and sae_weights.safetensors.
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
    given = {out_dir: config}
    return train_saes_on_model(model_dir, train_bin, given, device=device, progress=progress)[0]


def train_saes_on_model(
    model_dir: Path,
    train_bin: Path,
    configs: Mapping[Path, TrainSaeConfig],
    *,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> list[TrainingResult]:
    """Train several dictionaries in one pass over a model's activations; see `train_sae_on_model`.

    Args:
        model_dir: a folder written by `train_model`.
        train_bin: uint16 token ids; documents start with id 0.
        configs: settings of each, by its folder; they may differ in all that is not said by the
            batches: d_in, n_activations, batch_size, block_windows, hook_point and seed.
        device: `cpu`, `cuda` or `cuda:N`.
        progress: is told one line now and then; None writes to stderr.

    Returns:
        The dictionaries and their curves, in the order of `configs`.

    Raises:
        ValueError: the device has another name, or the batches of two would differ.
        SaeError: see `train_sae_on_model`.
        ModelError: see `train_sae_on_model`.
        StoreError: see `train_sae_on_model`.
    """
    place, say = choose_device(device), progress or to_stderr
    config = _shared(configs)
    model = load_transformer(model_dir)
    if config.d_in != model.config.d_mlp:
        raise SaeError(
            f"d_in is {config.d_in}, but {config.hook_point} of {model_dir} is "
            f"{model.config.d_mlp} wide"
        )
    layer = _layer(config.hook_point, model, model_dir)
    token_ids = read_token_ids(train_bin, n_ctx=model.config.n_ctx, d_vocab=model.config.d_vocab)
    n_block = block_bytes(config, n_tokens=len(token_ids), n_ctx=model.config.n_ctx)
    n_rows = rows_at_once(configs.values(), n_block, place, say)
    origin = {
        "model_sha256": sha256_of(model_dir / WEIGHTS_FILE),
        "train_sha256": sha256_of(train_bin),
    }
    with ExitStack() as held:
        for out_dir in configs:
            held.enter_context(only_writer(out_dir))
        held.enter_context(memory_said(place, SaeError))
        source = ModelSource(
            model.to(place),
            token_ids,
            layer=layer,
            batch_size=config.batch_size,
            block_windows=config.block_windows,
            seed=config.seed,
            name=str(train_bin),
            progress=say,
        )
        trainers = [
            _Trainer(source, one, out_dir, origin, device=place, say=say, n_rows=n_rows)
            for out_dir, one in configs.items()
        ]
        for trainer in trainers:
            trainer.resume()
        _train(source, trainers, place)
        return [trainer.save(hash_weights(model)) for trainer in trainers]


class _Trainer:
    """A learner with its folder: checkpoints and a curve."""

    def __init__(
        self,
        source: ActivationSource,
        config: TrainSaeConfig,
        out_dir: Path | None,
        origin: dict[str, Any],
        *,
        device: torch.device,
        say: Callable[[str], None],
        n_rows: int | None,
    ) -> None:
        self.source = source
        self.config = config
        self.device = device
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.settings = {**asdict(config), **origin}
        for name in ("checkpoint_every", "record_every", "n_kept"):
            self.settings.pop(name)  # they decide no weight of a checkpoint
        self.say = say
        some = [batch_of(source, step, config, device) for step in range(_n_first(config))]
        self.learner = Learner(config, torch.cat(some), device, say)
        if n_rows is not None:
            self.learner.engine.portions.size = n_rows
        self.step = self.kept_step = 0  # done, and done when the checkpoint was written
        self.metrics: list[dict[str, float]] = []
        self._sums = torch.zeros(2, device=device)  # fvu and l0, since the last row of the curve
        self._n_steps, self._seconds = 0, 0.0

    def resume(self) -> None:
        """Take up the checkpoint, when there is one of the same settings."""
        assert self.out_dir is not None
        done = load_checkpoint(self.out_dir, self.settings, self.learner.load, SaeError)
        if done is not None:
            self.step = self.kept_step = done.step
            self.metrics = done.metrics
            self.say(f"resuming at step {self.step} of {self.config.n_steps}")

    def take(self, batch: Tensor) -> None:
        """Learn from the batch of the next step; a row of metrics and a checkpoint now and then."""
        config, started = self.config, time.monotonic()
        if self.step in config.resample_at and self.step > self.kept_step:
            self._resample()  # a checkpoint of this very step was written after that
        rate = trapezoid(
            self.step,
            n_steps=config.n_steps,
            warm_up_steps=config.warm_up_steps,
            decay_share=config.decay_share,
        )
        loss = self._look(batch)
        self.learner.learn(self.step + 1, rate)
        self.step += 1
        self._sums += torch.stack([loss.fvu, loss.l0])
        self._n_steps += 1
        self._seconds += time.monotonic() - started
        is_last = self.step == config.n_steps
        if self.step % config.record_every == 0 or is_last:
            self._record(self._sums / self._n_steps, self._n_steps * len(batch) / self._seconds)
            self._sums, self._n_steps, self._seconds = torch.zeros_like(self._sums), 0, 0.0
        if is_last:
            self._look(batch)  # refuses last weights that are bad

    def finished(self, model_hash: str) -> SparseAutoencoder:
        """Give the dictionary, without the features that are not to be kept."""
        sae, config = self.learner.finished(model_hash), self.config
        if config.n_kept is None:
            return sae
        n_steps = min(-(-N_JUDGED // config.batch_size), config.n_steps)
        self.say(f"keeping the {config.n_kept:,} features of {config.d_sae:,} that fire most")
        later = (
            batch_of(self.source, step, config, self.device)
            for step in range(config.n_steps, config.n_steps + n_steps)
        )
        return keep_most_used(sae.to(self.device), later, config.n_kept)

    def save(self, model_hash: str) -> TrainingResult:
        """Write the finished dictionary."""
        assert self.out_dir is not None
        sae = self.finished(model_hash)
        refuse_less(N_COPIES * n_bytes(sae.state_dict()))
        with stop_said(self.out_dir, self.say), space_said(self.out_dir, n_bytes(sae.state_dict())):
            kept = {"n_kept": self.config.n_kept}
            write_json(self.out_dir / TRAINING_FILE, self.settings | kept)
            save_sae(sae, self.out_dir)
        return TrainingResult(sae, self.metrics)

    def _look(self, batch: Tensor) -> BatchLoss:
        """Give the loss of the weights so far, and write them when it is time and it is finite."""
        config = self.config
        loss = self.learner.look(batch)
        said = f"lr {config.lr}, {config.variant}, seed {config.seed}"
        refuse_divergence({"loss": float(loss.fvu)}, self.step, self.out_dir, said, SaeError)
        is_due = self.step % config.checkpoint_every == 0 or self.step == config.n_steps
        if self.out_dir is not None and is_due and self.step > self.kept_step:
            done = Progress(self.step, self.metrics, self.learner.state())
            refuse_less(N_COPIES * n_bytes(done.tensors))
            save_checkpoint(self.out_dir, done, self.settings, SaeError)
            self.kept_step = self.step
        return loss

    def _resample(self) -> None:
        config = self.config
        n = -(-config.resample_inputs // config.batch_size)
        steps = range(self.step, min(self.step + n, config.n_steps))
        batches = (batch_of(self.source, step, config, self.device) for step in steps)
        n_anew = self.learner.resample(batches, self.step)
        self.say(f"step {self.step}: {n_anew} dead features start anew")

    def _record(self, means: Tensor, speed: float) -> None:
        n_dead = int((self.learner.silent > self.config.dead_after).sum())
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


def batch_of(
    source: ActivationSource, step: int, config: TrainSaeConfig, device: torch.device
) -> Tensor:
    """Give a batch to come as a float32 tensor on a device; see `activations.checked`."""
    return checked(source.peek(step), step, d_in=config.d_in, device=device)


def _layer(hook_point: str, model: Transformer, model_dir: Path) -> int:
    """Give the layer of a hook point of the model."""
    known = [str(HookPoint(layer)) for layer in range(model.config.n_layers)]
    if hook_point not in known:
        raise ModelError(
            f"model {model_dir} has no hook point {hook_point}; it has {', '.join(known)}"
        )
    return known.index(hook_point)


def _n_first(config: TrainSaeConfig) -> int:
    """Give the number of batches that hold a row for each feature, or of all."""
    return min(-(-config.d_sae // config.batch_size), config.n_steps)


def _shared(configs: Mapping[Path, TrainSaeConfig]) -> TrainSaeConfig:
    """Give settings whose batches are those of all."""
    if not configs:
        raise ValueError("configs must hold at least one")
    first = next(iter(configs.values()))
    for folder, config in configs.items():
        for name in SHARED:
            if getattr(config, name) != getattr(first, name):
                raise ValueError(
                    f"{name} must be the same for all dictionaries of one pass, got "
                    f"{getattr(first, name)} and {getattr(config, name)} (of {folder})"
                )
    return first


def _train(source: ActivationSource, trainers: list[_Trainer], device: torch.device) -> None:
    """Step to the end, those together that are at the same step."""
    n_steps = trainers[0].config.n_steps
    with ExitStack() as held:
        for trainer in trainers:
            held.enter_context(stop_said(trainer.out_dir, trainer.say))
        for step in range(min(trainer.step for trainer in trainers), n_steps):
            config = trainers[0].config
            batch = checked(source.batch(step), step, d_in=config.d_in, device=device)
            with threads(1):
                for trainer in trainers:
                    if trainer.step == step:
                        trainer.take(batch)
