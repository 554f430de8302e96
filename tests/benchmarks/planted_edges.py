"""How well edges of hard planted worlds are ranked and tested, beside other measures and nulls.

    python tests/benchmarks/planted_edges.py [--seeds 8] [--write docs/edges.md]

1. Worlds (tests/planted_rich.py): each seed at each share of misses and each size. Seeds start at
   100: those below were used to choose the score.
2. Rankings and calls (tests/edge_scores.py); in the small worlds also the agreement with drawing
   documents anew, and the null for the weights.
3. Rows permuted within documents: there is no edge, so each call is false.
4. Bursts (tests/planted_bursts.py): unrelated features of one topic; each call is false.

Each world is a job of its own; as many jobs run at once as there are cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where worlds and scores are

import edge_scores
import naive
from edge_scores import MEASURES, Agreement, Calls
from planted_bursts import N_FEATURES, bursty_tokens
from planted_rich import rich_world

from circuits.evidence import MAX_Q, pair_table
from figures.tables import markdown, replace_block
from sae_core.statistics import collect

if TYPE_CHECKING:
    from planted import PlantedWorld

    from sae_core.schema import TokenTable
    from sae_core.statistics import Statistics

FIRST_SEED = 100
MISSES = (0.05, 0.15, 0.25)
SIZES = (60_000, 300_000)
BURSTS = (20, 50, 100, 200, 400)
BURST_TOKENS = 120_000
G2_AT_5_PERCENT = 3.84
ASIDE = "Average precision; edges of onlookers count neither way"
FALSE = "The same, where edges of onlookers are false"


class Job(NamedTuple):
    """One world."""

    n_tokens: int
    miss: float
    seed: int


class Checks(NamedTuple):
    """What takes many draws of a world."""

    agreement: Agreement
    beyond: tuple[float, float]
    """Share of true edges with p <= 0.05 by the null for the weights: real, permuted weights."""

    permuted_precision: float
    """Average precision of the score when promotions have changed places."""


class Line(NamedTuple):
    """What was measured in one world."""

    job: Job
    precision: dict[str, float]
    """Average precision by measure; what is observed and not promoted is false."""

    aside: dict[str, float]
    """The same, where that counts neither way."""

    calls: Calls
    null_share: float
    """Share of pairs with p < 0.05 when rows are permuted within documents."""

    null_calls: int
    checks: Checks | None
    """None in the large worlds."""


def main() -> None:
    """Print the tables."""
    options = _options()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    jobs = [Job(n, miss, seed) for n, miss, seed in product(SIZES, MISSES, seeds)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        bursts = [pool.submit(run_bursts, length, list(seeds)) for length in BURSTS]
        lines = list(pool.map(run, jobs[::-1]))[::-1]  # large ones first: no core waits at the end
        text = _text(lines, [found.result() for found in bursts], options.seeds)
    print(text, flush=True)
    if options.write:
        replace_block(options.write, "planted-edges", text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--write", type=Path, help="a page whose block gets the tables")
    return parser.parse_args()


def run(job: Job) -> Line:
    """Make one world and measure everything in it."""
    rng = np.random.default_rng(job.seed)
    with tempfile.TemporaryDirectory() as folder:
        world = rich_world(
            Path(folder) / "run", seed=job.seed, n_tokens=job.n_tokens, miss=(job.miss, job.miss)
        )
        tokens = edge_scores.counted_tokens(world.path)
        sums = edge_scores.sums_of(world.path, tokens)
        rows = naive.permuted_within_documents(tokens, rng)
        null = pair_table(edge_scores.sums_of(world.path, rows))
    pairs, other = edge_scores.measured(sums), edge_scores.without_onlookers(world)
    return Line(
        job=job,
        precision={name: edge_scores.precision_by(world, pairs, name) for name in MEASURES},
        aside={name: edge_scores.precision_by(other, pairs, name) for name in MEASURES},
        calls=edge_scores.calls_of(world, pairs),
        null_share=float(np.mean(null["p_value"].to_numpy() < 0.05)),
        null_calls=len(edge_scores.called(null)),
        checks=_checks(world, tokens, sums, rng) if job.n_tokens == min(SIZES) else None,
    )


def _checks(
    world: PlantedWorld, tokens: TokenTable, sums: Statistics, rng: np.random.Generator
) -> Checks:
    moved = edge_scores.promotions_permuted(tokens, rng)
    moved_sums = collect(moved, sums.d_sae, sums.d_vocab)
    real, permuted = (
        edge_scores.share_beyond(stream, counted, world.truth_edges, rng)
        for stream, counted in ((tokens, sums), (moved, moved_sums))
    )
    score = edge_scores.precision_by(world, edge_scores.measured(moved_sums), "score")
    return Checks(edge_scores.agreement(tokens, sums, rng), (real, permuted), score)


def run_bursts(mean_length: int, seeds: list[int]) -> tuple[int, float, float, float]:
    """Count the pairs of unrelated features that are called: by G2 alone, by all nulls, of how many."""
    found = []
    for seed in seeds:
        tokens = bursty_tokens(BURST_TOKENS, mean_length, np.random.default_rng(seed))
        pairs = pair_table(collect(tokens, N_FEATURES, 1))
        pairs = pairs.filter(pl.col("source") != pl.col("target"))
        by_g2 = pairs.filter((pl.col("g2") > G2_AT_5_PERCENT) & (pl.col("lift") > 1))
        found.append((len(by_g2), len(edge_scores.called(pairs)), len(pairs)))
    by_g2, called, tested = (float(mean(column)) for column in zip(*found, strict=True))
    return mean_length, by_g2, called, tested


def _text(lines: list[Line], bursts: list[tuple[int, float, float, float]], n_seeds: int) -> str:
    tables = (
        (ASIDE, _precision_table(lines, "aside")),
        (FALSE, _precision_table(lines, "precision")),
        (f"Calls at q < {MAX_Q}, and in permuted text", _calls_table(lines)),
        ("Documents drawn anew, and weights that change places", _checks_table(lines)),
        (f"Unrelated features of one topic: pairs called, of {bursts[0][3]:.0f}", _bursts(bursts)),
    )
    said = f"Means over {n_seeds} worlds a line; in brackets the worst world."
    return "\n\n".join([said, *(f"{title}:\n\n{table}" for title, table in tables)])


def _bursts(bursts: list[tuple[int, float, float, float]]) -> str:
    rows = [(str(length), f"{g2:.1f}", f"{called:.1f}") for length, g2, called, _ in bursts]
    head = ("mean length of a burst, tokens", "G2 alone, p < 0.05", "all nulls, q < 0.05")
    return markdown(head, rows, n_words=0)


def _groups(lines: list[Line]) -> list[tuple[list[str], list[Line]]]:
    """Give the lines of each size and share of misses, with the first two cells of their row."""
    return [
        ([f"{n:,}", f"{miss:.0%}"], [one for one in lines if one.job[:2] == (n, miss)])
        for n, miss in product(SIZES, MISSES)
    ]


def _precision_table(lines: list[Line], which: str) -> str:
    rows = []
    for cells, of in _groups(lines):
        for name in MEASURES:
            values = [getattr(one, which)[name] for one in of]
            worst = f" ({min(values):.3f})" if name == "score" else ""
            cells.append(f"{mean(values):.3f}{worst}")
        rows.append(cells)
    return markdown(("tokens", "misses", *MEASURES.values()), rows, n_words=0)


def _calls_table(lines: list[Line]) -> str:
    head = (
        "tokens", "misses", "called", "false / called", "true edges called", "permuted: p < 0.05",
        "permuted: calls",
    )  # fmt: skip
    rows = []
    for cells, of in _groups(lines):
        n_called, n_false = (sum(one.calls[at] for one in of) for at in (0, 1))
        null, null_calls = [one.null_share for one in of], [one.null_calls for one in of]
        rows.append(
            [
                *cells,
                f"{n_called / len(of):.0f}",
                f"{n_false / max(n_called, 1):.4f}",
                f"{mean(one.calls.recall for one in of):.2f}",
                f"{mean(null):.3f} ({max(null):.3f})",
                f"{mean(null_calls):.1f} ({max(null_calls)})",
            ]
        )
    return markdown(head, rows, n_words=0)


def _checks_table(lines: list[Line]) -> str:
    head = (
        "tokens", "misses", "same verdict", "kappa", "beyond", "beyond, permuted", "score",
        "score, permuted", "s alone",
    )  # fmt: skip
    rows = []
    for cells, of in _groups([one for one in lines if one.checks]):
        checks = [one.checks for one in of if one.checks]
        columns = [
            [one.agreement.same for one in checks],
            [one.agreement.kappa for one in checks],
            [one.beyond[0] for one in checks],
            [one.beyond[1] for one in checks],
            [one.precision["score"] for one in of],
            [one.permuted_precision for one in checks],
            [one.precision["s"] for one in of],
        ]
        if checks:
            rows.append([*cells, *(f"{mean(column):.3f}" for column in columns)])
    return markdown(head, rows, n_words=0)


if __name__ == "__main__":
    main()
