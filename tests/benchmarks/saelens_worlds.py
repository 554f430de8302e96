"""SAELens' trainers and synthetic benchmark for `sae_worlds.py`: a line of JSON in, a line out.

    python tests/benchmarks/saelens_worlds.py

It runs in an environment of its own, and shares nothing with the caller but folders: rows of
activations come as .npy, dictionaries go both ways in the layout of SAELens.

1. `train`: a dictionary by SAELens' own trainer, with its own defaults but for the steps, batch,
   learning rate and window of dead features, which are those of the caller.
2. `world`: SynthSAEBench-16k at 1/32 of its size, and rows of it.
3. `evaluate`: SAELens' own scores of a dictionary on such a world.

Source of the settings of SynthSAEBench-16k: SAELens' documentation, `docs/synth_sae_bench.md`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sae_lens import SAE, LoggingConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    eval_sae_on_synthetic_data,
)
from sae_lens.training.sae_trainer import SAETrainer

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = {
    "topk": ("topk", "k"),
    "batch_topk": ("batchtopk", "k"),
    "matryoshka": ("matryoshka_batchtopk", "k"),
    "jumprelu": ("jumprelu", "l0_coefficient"),
    "l1": ("standard", "l1_coefficient"),
}  # our variant: SAELens' name, and what makes it sparse
LEVELS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of Matryoshka, as ours
NORM_BATCHES = 50  # that say how long activations are
N_TRUE, D_IN, N_TREES = 512, 64, 4  # of 16,384, 768 and 128
N_SCORED = 20_000


def train(
    *, rows: str, variant: str, value: float, seed: int, d_sae: int, out: str, steps: dict[str, Any]
) -> None:
    """Train a dictionary on rows (n, d_in) and write it in the layout that SAELens reads."""
    x = np.load(rows, allow_pickle=False)
    name, sparse_by = NAMES[variant]
    sae_class, config_class = get_sae_training_class(name)
    more = {sparse_by: int(value) if variant == "topk" else value}
    if variant == "matryoshka":
        more["matryoshka_widths"] = [int(share * d_sae) for share in LEVELS]
    scaling = "expected_average_only_in"  # SAELens' advice; folded into the weights at the end
    config = config_class(d_in=x.shape[1], d_sae=d_sae, normalize_activations=scaling, **more)
    torch.manual_seed(seed)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps["n"] * steps["batch"],
            train_batch_size_samples=steps["batch"],
            lr=steps["lr"],
            lr_end=steps["lr"],
            lr_warm_up_steps=steps["warm_up"],
            lr_decay_steps=steps["decay"],
            dead_feature_window=steps["dead_after"],
            n_batches_for_norm_estimate=NORM_BATCHES,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae_class(config),
        data_provider=_batches(x, steps["batch"], seed),
    )
    trainer.fit().save_inference_model(out)


def world(*, seed: int, n: int, out: str) -> dict[str, float]:
    """Write a small SynthSAEBench and n of its rows; the last ones are not to be trained on."""
    model = SyntheticModel(
        SyntheticModelConfig(
            num_features=N_TRUE,
            hidden_dim=D_IN,
            firing_probability=ZipfianFiringProbabilityConfig(0.5, max_prob=0.4, min_prob=5e-4),
            hierarchy=HierarchyConfig(
                total_root_nodes=N_TREES,
                branching_factor=4,
                max_depth=3,
                mutually_exclusive_portion=1.0,
                compensate_probabilities=True,
                scale_children_by_parent=True,
            ),
            orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
            correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
            mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
            std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
            seed=seed,
        )
    )
    torch.manual_seed(seed)
    x, codes = model.sample_with_features(n)
    model.save(Path(out) / "model")
    np.save(Path(out) / "rows.npy", x.numpy(), allow_pickle=False)
    return {"l0": float((codes > 0).sum(dim=1).float().mean())}


def evaluate(*, world: str, sae: str, seed: int) -> dict[str, float]:
    """Give SAELens' scores of a dictionary on a small SynthSAEBench."""
    model = SyntheticModel.load_from_disk(Path(world) / "model")
    torch.manual_seed(1_000_003 + seed)
    found = eval_sae_on_synthetic_data(
        SAE.load_from_disk(sae), model.feature_dict, model.activation_generator, N_SCORED
    )
    return found.to_log_dict()


def _batches(x: np.ndarray, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Give the rows in batches, in an order that changes each time through."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(x))
        for at in range(0, len(x) - size + 1, size):
            yield torch.from_numpy(x[order[at : at + size]])


def main() -> None:
    """Answer lines of stdin; answers start with `= `, as a library may print what it likes."""
    torch.set_num_threads(1)
    print("= null", flush=True)
    for line in sys.stdin:
        words = json.loads(line)
        done = {"train": train, "world": world, "evaluate": evaluate}[words.pop("do")](**words)
        print(f"= {json.dumps(done)}", flush=True)


if __name__ == "__main__":
    main()
