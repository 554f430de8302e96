"""The learning rates of `sae_worlds.py`: each trainer's best for each kind of dictionary.

    python tests/benchmarks/world_rates.py [--peers PYTHON]

Every rate trains a dictionary on a sparse world that the tables of `sae_worlds.py` do not hold,
tuned to the same L0. The rate with the best F1 is the one to write into `world_trainers.py`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where worlds and scores are

from feature_scores import read, score
from feature_worlds import feature_world
from sae_worlds import N_ROWS, N_UNSEEN
from world_trainers import D_SAE, Ours, SaeLens, Trainer, tuned

from figures.tables import markdown
from sae_core.train_settings import VARIANTS

TRIED = (1e-3, 3e-3, 1e-2, 3e-2)
WORLD_SEED = 100  # no world of the tables


class Job(NamedTuple):
    """One kind of dictionary for one trainer."""

    variant: str
    peer: str | None
    n_steps: int


def main() -> None:
    """Print a row for each trainer, kind and rate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", help="the interpreter of an environment with SAELens")
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    peers = [None, options.peers] if options.peers else [None]
    jobs = [Job(variant, peer, options.steps) for peer in peers for variant in VARIANTS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        rows = [row for found in pool.map(run, jobs) for row in found]
    head = ["dictionary", "trained by", "rate", "cost or k", "L0", "FVU", "max cosine", "F1"]
    print(markdown(head, rows, n_words=2))


def run(job: Job) -> list[list[str]]:
    """Train and score one kind of dictionary at every rate."""
    torch.set_num_threads(1)
    if job.peer is None:
        return [_row(job, Ours(job.n_steps, {job.variant: rate}), rate) for rate in TRIED]
    rows = []
    for rate in TRIED:
        with (
            tempfile.TemporaryDirectory() as folder,
            SaeLens(job.peer, Path(folder), job.n_steps, {job.variant: rate}) as saelens,
        ):
            rows.append(_row(job, saelens, rate))
    return rows


def _row(job: Job, trainer: Trainer, rate: float) -> list[str]:
    world = feature_world("sparse", seed=WORLD_SEED, n_true=D_SAE)
    unseen = world.rows(N_UNSEEN, part=1)
    found = tuned(trainer, job.variant, world.rows(N_ROWS, part=0).x, unseen.x, seed=0)
    scores = score(world, unseen, read(found.sae, unseen))
    numbers = (scores.l0, scores.fvu, scores.max_cosine, scores.f1)
    said = [f"{rate:g}", f"{found.value:.4g}", *(f"{number:.3f}" for number in numbers)]
    print(job.variant, trainer.name, *said, file=sys.stderr, flush=True)
    return [job.variant, trainer.name, *said]


if __name__ == "__main__":
    main()
