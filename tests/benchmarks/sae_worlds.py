"""How much of known features each kind of dictionary finds, beside floors, a ceiling and SAELens.

    python tests/benchmarks/sae_worlds.py [--peers PYTHON] [--seeds 3] [--write docs/dictionaries.md]

1. Worlds: `sparse`, `correlated`, `hierarchical` (tests/feature_worlds.py), one a seed.
2. Dictionaries of as many features as the world has, at the world's own L0. A variant with a cost
   is tuned on the first seed; the others take its cost.
3. Scores on rows that were not trained on (tests/feature_scores.py), the mean over seeds.
4. Floors: directions that nobody trained. Ceiling: a dictionary that starts from the true
   directions.
5. With `--peers`: SAELens' trainers on the same rows; and both on SynthSAEBench, SAELens' own
   benchmark at 1/32 of its size, scored by SAELens.

Each world is a job of one thread; as many jobs run at once as there are cores. SAELens needs an
environment of its own:

    python -m venv peers && peers/bin/pip install sae-lens
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, pstdev
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where worlds and scores are

from feature_scores import read, score
from feature_worlds import KINDS, feature_world
from world_trainers import D_SAE, TARGET, Ours, SaeLens, Trainer, tuned, untrained

from figures.tables import markdown, replace_block
from sae_core.sae import SparseAutoencoder, save_sae
from sae_core.train_settings import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

N_ROWS, N_UNSEEN = 100_000, 20_000
BENCH = "SynthSAEBench"
BENCH_SEED = 1000  # SAELens and the floors draw by torch: equal seeds would be equal directions
WORLD_COLUMNS = {
    "l0": ("L0", 1),
    "fvu": ("FVU", 3),
    "max_cosine": ("max cosine", 3),
    "matched": ("own cosine > 0.9", 2),
    "f1": ("F1", 3),
    "n_dead": ("dead", 0),
    "absorbed": ("absorbed", 2),
}  # of feature_scores.WorldScores: heading, digits
BENCH_COLUMNS = {
    "sae_l0": ("L0", 1),
    "explained_variance": ("explained variance", 3),
    "mcc": ("MCC", 3),
    "classification/f1_score": ("F1", 3),
    "classification/precision": ("precision", 3),
    "classification/recall": ("recall", 3),
    "uniqueness": ("uniqueness", 2),
    "dead_latents": ("dead", 0),
}  # of SAELens
SPREAD = {"max_cosine", "f1", "mcc", "classification/f1_score"}  # shown with their deviation


class Job(NamedTuple):
    """One world for one trainer."""

    kind: str
    """Of the world."""

    peer: str | None
    """SAELens' interpreter; None: ours trains."""

    n_seeds: int
    """Worlds of the kind."""

    n_steps: int
    """Of each training."""


class Line(NamedTuple):
    """One dictionary in one kind of world."""

    kind: str
    """Of the world."""

    words: tuple[str, str]
    """The dictionary, and who trained it."""

    scores: list[dict[str, float | None]]
    """By name, a seed each."""


def main() -> None:
    """Print the tables."""
    options = _options()
    peers = [(BENCH, options.peers), *((kind, options.peers) for kind in KINDS)]
    worlds = [(kind, None) for kind in KINDS] + (peers if options.peers else [])
    jobs = [Job(kind, peer, options.seeds, options.steps) for kind, peer in worlds]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        lines = [line for found in pool.map(run, jobs) for line in found]
    text = _text(lines, options.seeds, options.steps)
    print(text, flush=True)
    if options.write:
        replace_block(options.write, "worlds", text)
    if not options.peers:
        print("\nnot run, for want of --peers: SAELens", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", help="the interpreter of an environment with SAELens")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--write", type=Path, help="a page whose block `worlds` gets the tables")
    return parser.parse_args()


def run(job: Job) -> list[Line]:
    """Train and score all dictionaries of a job."""
    torch.set_num_threads(1)
    ours = Ours(job.n_steps)
    if job.peer is None:
        return list(_world_lines(job, ours, with_bounds=True))
    with (
        tempfile.TemporaryDirectory() as folder,
        SaeLens(job.peer, Path(folder), job.n_steps) as saelens,
    ):
        if job.kind == BENCH:
            return list(_bench_lines(job, ours, saelens))
        return list(_world_lines(job, saelens, with_bounds=False))


def _world_lines(job: Job, trainer: Trainer, *, with_bounds: bool) -> Iterator[Line]:
    """Score dictionaries on our worlds; the bounds are what is not trained, or from the truth."""
    worlds = [feature_world(job.kind, seed=seed, n_true=D_SAE) for seed in range(job.n_seeds)]
    rows = [world.rows(N_ROWS, part=0).x for world in worlds]
    unseen = [world.rows(N_UNSEEN, part=1) for world in worlds]

    def line(name: str, by: str, saes: Iterable[SparseAutoencoder]) -> Line:
        found = zip(worlds, unseen, saes, strict=True)
        scores = [score(world, some, read(sae, some))._asdict() for world, some, sae in found]
        return Line(job.kind, (name, by), scores)

    if with_bounds:
        yield from (line(name, "", saes) for name, saes in _untrained(rows))
        ours, pairs = Ours(job.n_steps), zip(worlds, rows, strict=True)
        truth = (ours.train_from_truth(x, world.directions, world.seed) for world, x in pairs)
        yield line("batch_topk, from the truth", ours.name, truth)
    for variant in VARIANTS:
        yield line(variant, trainer.name, _trained(trainer, variant, rows, unseen[0].x))


def _bench_lines(job: Job, ours: Ours, saelens: SaeLens) -> Iterator[Line]:
    """Let SAELens score dictionaries on worlds of its own."""
    folders = [saelens.folder / str(seed) for seed in range(job.n_seeds)]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        saelens.ask("world", seed=BENCH_SEED + seed, n=N_ROWS + N_UNSEEN, out=str(folder))
    rows = [np.load(folder / "rows.npy", allow_pickle=False) for folder in folders]
    unseen, rows = rows[0][N_ROWS:], [x[:N_ROWS] for x in rows]

    def line(name: str, by: str, saes: Iterable[SparseAutoencoder]) -> Line:
        scores = []
        for seed, (folder, sae) in enumerate(zip(folders, saes, strict=True)):
            save_sae(sae, folder / "scored")
            where = {"world": str(folder), "sae": str(folder / "scored")}
            scores.append(saelens.ask("evaluate", **where, seed=seed))
        return Line(job.kind, (name, by), scores)

    yield from (line(name, "", saes) for name, saes in _untrained(rows))
    for trainer in (ours, saelens):
        for variant in VARIANTS:
            yield line(variant, trainer.name, _trained(trainer, variant, rows, unseen))


def _untrained(rows: list[NDArray[np.float32]]) -> Iterator[tuple[str, list[SparseAutoencoder]]]:
    floors = [untrained(x, seed) for seed, x in enumerate(rows)]
    yield from ((name, [floor[name] for floor in floors]) for name in floors[0])


def _trained(
    trainer: Trainer, variant: str, rows: list[NDArray[np.float32]], unseen: NDArray[np.float32]
) -> Iterator[SparseAutoencoder]:
    """Give a dictionary a seed; the first one decides how sparse the others are made."""
    first = tuned(trainer, variant, rows[0], unseen, seed=0)
    yield first.sae
    for seed, x in enumerate(rows[1:], start=1):
        yield trainer.train(x, variant, first.value, seed)


def _text(lines: list[Line], n_seeds: int, n_steps: int) -> str:
    order = {kind: at for at, kind in enumerate((*KINDS, BENCH))}
    lines = sorted(lines, key=lambda line: (order[line.kind], line.words[1] == SaeLens.name))
    ours = [line for line in lines if line.kind != BENCH]
    theirs = [line for line in lines if line.kind == BENCH]
    said = (
        f"{D_SAE} features, L0 near {TARGET:g}, {n_steps:,} steps; means over {n_seeds} worlds of a "
        "kind, with the standard deviation.\n"
    )
    parts = [said, _table(ours, WORLD_COLUMNS)]
    if theirs:
        parts += [f"\n{BENCH} at 1/32 of its size, scored by SAELens:\n"]
        parts += [_table(theirs, BENCH_COLUMNS)]
    return "\n".join(parts)


def _table(lines: list[Line], columns: dict[str, tuple[str, int]]) -> str:
    head = ["world", "dictionary", "trained by", *(heading for heading, _ in columns.values())]
    rows = []
    for line in lines:
        cells = []
        for name, (_, digits) in columns.items():
            cells.append(_cell([found[name] for found in line.scores], digits, name in SPREAD))
        rows.append([line.kind, *line.words, *cells])
    return markdown(head, rows, n_words=3)


def _cell(values: Sequence[float | None], digits: int, is_spread: bool) -> str:  # noqa: FBT001
    known = [value for value in values if value is not None]
    if not known:
        return ""
    said = f"{mean(known):.{digits}f}"
    return f"{said} ± {pstdev(known):.{digits}f}" if is_spread else said


if __name__ == "__main__":
    main()
